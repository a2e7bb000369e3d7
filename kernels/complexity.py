"""Class centralization and class-aware CMI of every class; their gradient is in `complexity_backward`.

Class k has rows z_i with mean c, P_i = softmax(z_i) and Q = mean P_i:

    spread = sum_i |z_i − c|²  or, with alpha,  sum_i max(0, exp(alpha·|z_i − c|²) − beta)
    kl     = sum_i sum_e P_ie·(log P_ie − log Q_e)

A program holds whole rows, so that a softmax is one read. Its tile is CLASSES x ROWS x WIDTH: several classes where
these are small, else ROWS rows at a time of one class, which `splits` programs may share; WIDTH >= E features.

    class_sums   where splits > 1: the sums of z − pivot and of P over each program's rows
    class_terms  c and Q from those sums or, where splits = 1, from the rows; then, reading the rows again (those of a
                 small class from the L1 cache), the program's share of spread and kl
    totals       the loss and its terms from those shares

All sums have a fixed order. The pivot is a class's first row: beside a mean far larger than the spread, sums about 0
would lose the digits that matter. What holds a sum is float64 for float64 features and float32 otherwise; weights,
alpha and beta come as float64 and are rounded to that.
"""

import triton
import triton.language as tl

from .complexity_rows import SIZES, cells_of, classes_of, columns_of, divergence, pivot_of, pull, rows_of, softmax


@triton.jit
def sums_of(
    features, strides, first, start, stop, longest, index, pivot, columns, inside,
    CENTER: tl.constexpr, INFORM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sums of z − pivot and of P over the program's rows: (CLASSES, WIDTH)."""
    shape: tl.constexpr = (pivot.shape[0], ROWS, pivot.shape[1])
    shift = tl.zeros(shape, pivot.dtype)
    mass = tl.zeros(shape, pivot.dtype)
    absent = pivot[:, None, :].to(features.dtype.element_ty)  # a row that does not exist adds nothing to `shift`
    for begin in range(0, longest, ROWS):
        rows, member = rows_of(first, start, begin, stop, index, ROWS)
        mask = member[:, :, None] & inside[None, None, :]
        z = tl.load(features + cells_of(rows, columns, strides), mask=mask, other=absent).to(pivot.dtype)
        if CENTER:
            shift += z - pivot[:, None, :]
        if INFORM:
            mass += softmax(z, member, inside)
    return tl.sum(shift, 1), tl.sum(mass, 1)


@triton.jit
def over_splits(partials, k, exists, splits, width, columns, inside, ROWS: tl.constexpr):
    """The sums over the splits: (K, splits, E) -> (CLASSES, WIDTH)."""
    total = tl.zeros((k.shape[0], ROWS, columns.shape[0]), partials.dtype.element_ty)
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)[None, :]
        member = exists[:, None] & (split < splits)
        cells = cells_of(k[:, None] * splits + split, columns, (width, 1))
        total += tl.load(partials + cells, mask=member[:, :, None] & inside[None, None, :], other=0)
    return tl.sum(total, 1)


@triton.jit(do_not_specialize=SIZES)
def class_sums(
    features,  # (N, E)
    offsets,  # (K + 1,) int64, or None
    index,  # (N,) int64, or None
    sums,  # (K, splits, E), written where CENTER
    masses,  # (K, splits, E), written where INFORM
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

    shift, mass = sums_of(
        features, strides, first, start, stop, longest, index, pivot, columns, inside, CENTER, INFORM, ROWS
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
    parts,  # (K, splits, 2): spread and kl of each program's rows, written where wanted
    pulls,  # (K, splits, E): its sum of the pull on c, or None; only where EXPONENTIAL and KEEP and splits > 1
    centers,  # (K, E), as `drift` and `log_q` a state of the operator, written where wanted and KEEP
    drift,
    log_q,
    largest,
    width,  # E
    classes,  # K
    splits,
    row_stride,
    column_stride,
    alpha: tl.float64,
    beta: tl.float64,
    CENTER: tl.constexpr,  # whether centralization is wanted
    INFORM: tl.constexpr,  # whether CMI is
    EXPONENTIAL: tl.constexpr,  # whether alpha is given
    KEEP: tl.constexpr,  # whether there will be a backward
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
            features, strides, first, start, stop, longest, index, pivot, columns, inside, CENTER, INFORM, ROWS
        )
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

    WIDE: tl.constexpr = WIDTH >= 4096  # sums for every element would need more registers than a thread has
    BY_ROW: tl.constexpr = EXPONENTIAL or WIDE
    spread = tl.zeros((CLASSES, ROWS) if BY_ROW else (CLASSES, ROWS, WIDTH), dtype)
    kl = tl.zeros((CLASSES, ROWS) if WIDE else (CLASSES, ROWS, WIDTH), dtype)
    pulled = tl.zeros((CLASSES, ROWS, WIDTH), dtype)
    for begin in range(0, longest, ROWS):
        rows, member = rows_of(first, start, begin, stop, index, ROWS)
        mask = member[:, :, None] & inside[None, None, :]
        z = tl.load(features + cells_of(rows, columns, strides), mask=mask, other=0).to(dtype)
        if CENTER:
            offset = tl.where(member[:, :, None], z - center[:, None, :], 0)
            squared = offset * offset
            if BY_ROW:
                squared = tl.sum(squared, 2)
            if EXPONENTIAL:
                excess = tl.maximum(tl.exp(alpha * squared) - beta, 0, propagate_nan=tl.PropagateNan.ALL)
                spread += tl.where(member, excess, 0)
                pulled += pull(squared, alpha, beta)[:, :, None] * offset
            else:
                spread += squared
        if INFORM:
            summands = divergence(softmax(z, member, inside), log_of_q)
            kl += tl.sum(summands, 2) if WIDE else summands

    part = k * splits + tl.program_id(1)
    state = k[:, None] * width + columns[None, :]
    mask = exists[:, None] & inside[None, :]
    if CENTER:
        spread = tl.sum(spread, 1)
        tl.store(parts + 2 * part, spread if BY_ROW else tl.sum(spread, 1), mask=exists)
        if pulls is not None:
            tl.store(pulls + part[:, None] * width + columns[None, :], tl.sum(pulled, 1), mask=mask)
    if INFORM:
        kl = tl.sum(kl, 1)
        tl.store(parts + 2 * part + 1, kl if WIDE else tl.sum(kl, 1), mask=exists)
    if KEEP and tl.program_id(1) == 0:
        if CENTER:
            tl.store(centers + state, center, mask=mask)
            if not EXPONENTIAL:
                tl.store(drift + state, rounding, mask=mask)
            elif pulls is None:
                tl.store(drift + state, tl.sum(pulled, 1) / counted, mask=mask)
        if INFORM:
            tl.store(log_q + state, log_of_q, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def totals(
    parts,  # (K, splits, 2) of class_terms
    loss,  # () or, where PER_CLASS, (K,)
    terms,  # (2,): spread and share·kl of all classes
    classes,  # K
    splits,
    centralization_weight: tl.float64,
    cmi_weight: tl.float64,
    share: tl.float64,  # 1/N for a batch mean, else 1
    CENTER: tl.constexpr,  # whether centralization is wanted
    INFORM: tl.constexpr,  # whether CMI is
    PER_CLASS: tl.constexpr,  # whether the losses of the classes are wanted
    CLASSES: tl.constexpr,  # of a step
    SPLITS: tl.constexpr,  # at least splits
):
    dtype: tl.constexpr = parts.dtype.element_ty
    centralization_weight = tl.full((), centralization_weight, dtype)
    cmi_weight, share = tl.full((), cmi_weight, dtype), tl.full((), share, dtype)
    split = tl.arange(0, SPLITS)[None, :]
    spreads = tl.zeros((CLASSES,), dtype)
    kls = tl.zeros((CLASSES,), dtype)
    for begin in range(0, classes, CLASSES):
        k = begin + tl.arange(0, CLASSES)
        cells = (k[:, None] * splits + split) * 2
        mask = (k < classes)[:, None] & (split < splits)
        spread = tl.zeros((CLASSES,), dtype)
        kl = tl.zeros((CLASSES,), dtype)
        if CENTER:
            spread = tl.sum(tl.load(parts + cells, mask=mask, other=0), 1)
        if INFORM:
            kl = tl.sum(tl.load(parts + cells + 1, mask=mask, other=0), 1) * share
        if PER_CLASS:
            tl.store(loss + k, centralization_weight * spread + cmi_weight * kl, mask=k < classes)
        spreads += spread
        kls += kl

    spread, kl = tl.sum(spreads), tl.sum(kls)
    tl.store(terms, spread)
    tl.store(terms + 1, kl)
    if not PER_CLASS:
        tl.store(loss, centralization_weight * spread + cmi_weight * kl)
