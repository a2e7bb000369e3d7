"""The gradient of `complexity`'s losses, row by row, and the sum over classes.

    dL/dz_i = 2·w·(u_i·(z_i − c) − mean_j u_j·(z_j − c)) + w'·P_i ⊙ (log P_i − log Q − KL_i)

with u = 1, or with alpha the derivative of max(0, exp(alpha·s) − beta). Forward kept that mean: for u = 1 it is what
rounding took off c. The term through Q cancels.
"""

import triton
import triton.language as tl

from .complexity_rows import SIZES, cells_of, classes_of, columns_of, divergence, pull, rows_of, scale_of, softmax


@triton.jit(do_not_specialize=[*SIZES, "grad_stride"])
def row_gradient(
    grad,  # (K,), the upstream gradient; that of a scalar has stride 0
    features,  # (N, E)
    offsets,  # (K + 1,) int64, or None
    index,  # (N,) int64, or None
    centers,  # (K, E), as `drift` and `log_q` a state of the operator, read where wanted
    drift,
    log_q,
    gradient,  # (N, E), of the dtype of the features
    largest,
    width,  # E
    classes,  # K
    splits,
    grad_stride,
    row_stride,
    column_stride,
    gradient_row_stride,
    gradient_column_stride,
    centralization_weight: tl.float64,
    cmi_weight: tl.float64,  # times 1/N for a batch mean
    alpha: tl.float64,
    beta: tl.float64,
    CENTER: tl.constexpr,  # whether centralization is wanted
    INFORM: tl.constexpr,  # whether CMI is
    EXPONENTIAL: tl.constexpr,  # whether alpha is given
    DOUBLE: tl.constexpr,  # whether to calculate in float64
    FULL: tl.constexpr,  # WIDTH = E
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    k, exists, first, _, start, stop, longest = classes_of(offsets, largest, classes, splits, CLASSES, ROWS)
    columns, inside = columns_of(width, WIDTH, FULL)
    centralization_weight, cmi_weight = tl.full((), centralization_weight, dtype), tl.full((), cmi_weight, dtype)
    alpha, beta = tl.full((), alpha, dtype), tl.full((), beta, dtype)
    upstream = tl.load(grad + k * grad_stride, mask=exists, other=0).to(dtype)
    state = k[:, None] * width + columns[None, :]
    known = exists[:, None] & inside[None, :]
    if CENTER:
        center = tl.load(centers + state, mask=known, other=0)
        mean_pull = tl.load(drift + state, mask=known, other=0)
    if INFORM:
        log_of_q = tl.load(log_q + state, mask=known, other=0)

    for begin in range(0, longest, ROWS):
        rows, member = rows_of(first, start, begin, stop, index, ROWS)
        mask = member[:, :, None] & inside[None, None, :]
        z = tl.load(features + cells_of(rows, columns, (row_stride, column_stride)), mask=mask, other=0).to(dtype)

        total = tl.zeros((CLASSES, ROWS, WIDTH), dtype)
        if CENTER:
            offset = z - center[:, None, :]
            if EXPONENTIAL:
                offset = pull(tl.sum(offset * offset, 2), alpha, beta)[:, :, None] * offset
            total += 2 * centralization_weight * (offset - mean_pull[:, None, :])
        if INFORM:
            top, scale = scale_of(z, member, inside)
            p = softmax(z, top, scale, inside)
            summands = divergence(p, log_of_q)
            total += cmi_weight * (summands - p * tl.sum(summands, 2)[:, :, None])
        total *= upstream[:, None, None]

        cells = cells_of(rows, columns, (gradient_row_stride, gradient_column_stride))
        tl.store(gradient + cells, total.to(gradient.dtype.element_ty), mask=mask)
