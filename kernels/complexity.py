"""Class centralization and class-aware CMI of every class; their gradient is in `complexity_backward`.

Class k has rows z_i with mean c, P_i = softmax(z_i) and Q = mean P_i:

    spread = sum_i |z_i − c|²  or, with alpha,  sum_i max(0, exp(alpha·|z_i − c|²) − beta)
    kl     = sum_i sum_e P_ie·(log P_ie − log Q_e)

A program holds whole rows, so that a softmax is one read. Its tile is CLASSES x ROWS x WIDTH: several classes where
these are small, else ROWS rows at a time of one class, which `splits` programs may share; WIDTH >= E features.

    class_sums   where splits > 1: the sums of z − pivot and of P over each program's rows
    class_terms  c and Q from those sums or, where splits = 1, from the rows; then, reading the rows again (those of a
                 small class from the L1 cache), the program's share of spread and kl. Where splits > 1, the last
                 program to end also adds up the shares of all
    totals       where splits = 1: the loss and its terms from those shares

All sums have a fixed order, whichever program is the last. The pivot is a class's first row: beside a mean far larger
than the spread, sums about 0 would lose the digits that matter. What holds a sum is float64 for float64 features and
float32 otherwise; weights, alpha and beta come as float64 and are rounded to that.
"""

import triton
import triton.language as tl

from .complexity_rows import SIZES, classes_of, columns_of, pivot_of
from .complexity_sums import add_up, is_last, over_splits, sums_of, terms_of


@triton.jit(do_not_specialize=SIZES)
def class_sums(
    features,  # (N, E)
    offsets,  # (K + 1,) int64, or None
    index,  # (N,) int64, or None
    sums,  # (K, splits, E), written where CENTER
    masses,  # (K, splits, E), written where INFORM
    scales,  # (N, 2): maximum and 1 / sum of each row's exponentials, by position; written where INFORM
    tickets,  # (programs(0) + 1,) int32, set to 0 for `class_terms`
    largest,
    width,  # E
    classes,  # K
    splits,
    row_stride,
    column_stride,
    CENTER: tl.constexpr,  # whether centralization is wanted
    INFORM: tl.constexpr,  # whether CMI is
    FULL: tl.constexpr,  # WIDTH = E
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    strides = (row_stride, column_stride)
    k, exists, first, count, start, stop, longest = classes_of(offsets, largest, classes, splits, CLASSES, ROWS)
    columns, inside = columns_of(width, WIDTH, FULL)
    pivot = pivot_of(features, strides, first, count, index, columns, inside).to(sums.dtype.element_ty)
    if tl.program_id(1) == 0:
        tl.store(tickets + tl.program_id(0), 0)
        if tl.program_id(0) == 0:
            tl.store(tickets + tl.num_programs(0), 0)

    shift, mass = sums_of(
        features, strides, first, start, stop, longest, index, scales, pivot, columns, inside, CENTER, INFORM, ROWS
    )

    cells = (k * splits + tl.program_id(1))[:, None] * width + columns[None, :]
    mask = exists[:, None] & inside[None, :]
    if CENTER:
        tl.store(sums + cells, shift, mask=mask)
    if INFORM:
        tl.store(masses + cells, mass, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def class_terms(
    features,  # (N, E)
    offsets,  # (K + 1,) int64, or None
    index,  # (N,) int64, or None
    sums,  # (K, splits, E) of class_sums, or None where splits = 1
    masses,  # likewise
    scales,  # (N, 2) of class_sums; where splits = 1 written here; only where INFORM
    parts,  # (K, splits, 2): spread and kl of each program's rows, written where wanted
    pulls,  # (K, splits, E): its sum of the pull on c, or None; only where EXPONENTIAL and KEEP and splits > 1
    centers,  # (K, E), as `drift` and `log_q` a state of the operator, written where wanted and KEEP
    drift,
    log_q,
    loss,  # () or, where PER_CLASS, (K,); as `terms` written where splits > 1
    terms,  # (2,): spread and share·kl of all classes
    tickets,  # (programs(0) + 1,) int32, zeros: of the programs of a class, then of all; or None where splits = 1
    largest,
    width,  # E
    classes,  # K
    splits,
    row_stride,
    column_stride,
    centralization_weight: tl.float64,
    cmi_weight: tl.float64,
    share: tl.float64,  # 1/N for a batch mean, else 1
    alpha: tl.float64,
    beta: tl.float64,
    CENTER: tl.constexpr,  # whether centralization is wanted
    INFORM: tl.constexpr,  # whether CMI is
    EXPONENTIAL: tl.constexpr,  # whether alpha is given
    KEEP: tl.constexpr,  # whether there will be a backward
    PER_CLASS: tl.constexpr,  # whether the losses of the classes are wanted
    FULL: tl.constexpr,  # WIDTH = E
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = parts.dtype.element_ty
    strides = (row_stride, column_stride)
    k, exists, first, count, start, stop, longest = classes_of(offsets, largest, classes, splits, CLASSES, ROWS)
    columns, inside = columns_of(width, WIDTH, FULL)
    pivot = pivot_of(features, strides, first, count, index, columns, inside).to(dtype)
    alpha, beta = tl.full((), alpha, dtype), tl.full((), beta, dtype)

    if sums is None:
        shift, mass = sums_of(
            features, strides, first, start, stop, longest, index, scales, pivot, columns, inside, CENTER, INFORM, ROWS
        )
        tl.debug_barrier()  # other threads of the program read those scales
    else:
        shift, mass = pivot, pivot
        if CENTER:
            shift = over_splits(sums, k, exists, splits, width, columns, inside, ROWS)
        if INFORM:
            mass = over_splits(masses, k, exists, splits, width, columns, inside, ROWS)
    counted = tl.maximum(count, 1).to(dtype)[:, None]
    shift = shift / counted
    center = pivot + shift
    moved = center - pivot
    rounding = (pivot - (center - moved)) + (shift - moved)  # of c, exactly: Knuth's two-sum
    q = mass / counted
    log_of_q = tl.log(tl.where(q == 0, 1, q))  # where Q underflows, P does as well

    spread, kl, pulled = terms_of(
        features, strides, first, start, stop, longest, index, scales, center, log_of_q, alpha, beta, columns, inside,
        CENTER, INFORM, EXPONENTIAL, ROWS,
    )  # fmt: skip

    part = k * splits + tl.program_id(1)
    state = k[:, None] * width + columns[None, :]
    mask = exists[:, None] & inside[None, :]
    if CENTER:
        tl.store(parts + 2 * part, spread, mask=exists)
        if pulls is not None:
            tl.store(pulls + part[:, None] * width + columns[None, :], pulled, mask=mask)
    if INFORM:
        tl.store(parts + 2 * part + 1, kl, mask=exists)
    if KEEP and tl.program_id(1) == 0:
        if CENTER:
            tl.store(centers + state, center, mask=mask)
            if not EXPONENTIAL:
                tl.store(drift + state, rounding, mask=mask)
            elif pulls is None:
                tl.store(drift + state, pulled / counted, mask=mask)
        if INFORM:
            tl.store(log_q + state, log_of_q, mask=mask)

    if tickets is not None:
        if pulls is not None:  # noqa: SIM102  known when compiling, and the ticket when running
            if is_last(tickets + tl.program_id(0), splits):
                pulled = over_splits(pulls, k, exists, splits, width, columns, inside, ROWS)
                tl.store(drift + state, pulled / counted, mask=mask)
        if is_last(tickets + tl.num_programs(0), tl.num_programs(0) * splits):
            add_up(
                parts, loss, terms, classes, splits, centralization_weight, cmi_weight, share,
                CENTER, INFORM, PER_CLASS, 16, 64,
            )  # fmt: skip


@triton.jit(do_not_specialize=["classes"])
def totals(
    parts,  # (K, 1, 2) of class_terms
    loss,  # () or, where PER_CLASS, (K,)
    terms,  # (2,): spread and share·kl of all classes
    classes,  # K
    centralization_weight: tl.float64,
    cmi_weight: tl.float64,
    share: tl.float64,  # 1/N for a batch mean, else 1
    CENTER: tl.constexpr,  # whether centralization is wanted
    INFORM: tl.constexpr,  # whether CMI is
    PER_CLASS: tl.constexpr,  # whether the losses of the classes are wanted
):
    add_up(parts, loss, terms, classes, 1, centralization_weight, cmi_weight, share, CENTER, INFORM, PER_CLASS, 1024, 1)
