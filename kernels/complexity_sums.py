"""The sums of the complexity kernels: over the rows of a program, over the programs of a class, over classes."""

import triton
import triton.language as tl

from .complexity_rows import cells_of, divergence, pull, rows_of, scale_of, softmax

CHAIN = tl.constexpr(64)  # steps that one float32 sum takes before it is added to another: eager's sums are pairwise


@triton.jit
def scales_of(scales, first, start, begin, ROWS: tl.constexpr):
    """Where the maximum of each row stands, with 1 / sum of the exponentials behind it: (CLASSES, ROWS)."""
    return scales + 2 * ((first + start + begin)[:, None] + tl.arange(0, ROWS)[None, :])


@triton.jit
def sums_of(
    features, strides, first, start, stop, longest, index, scales, pivot, columns, inside,
    CENTER: tl.constexpr, INFORM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sums of z − pivot and of P over the program's rows: (CLASSES, WIDTH). Each row's scale goes into `scales`."""
    shape: tl.constexpr = (pivot.shape[0], ROWS, pivot.shape[1])
    shifts, masses = tl.zeros(pivot.shape, pivot.dtype), tl.zeros(pivot.shape, pivot.dtype)
    absent = pivot[:, None, :].to(features.dtype.element_ty)  # a row that does not exist adds nothing to `shift`
    for chain in range(0, longest, CHAIN * ROWS):
        shift, mass = tl.zeros(shape, pivot.dtype), tl.zeros(shape, pivot.dtype)
        for begin in range(chain, tl.minimum(chain + CHAIN * ROWS, longest), ROWS):
            rows, member = rows_of(first, start, begin, stop, index, ROWS)
            mask = member[:, :, None] & inside[None, None, :]
            z = tl.load(features + cells_of(rows, columns, strides), mask=mask, other=absent).to(pivot.dtype)
            if CENTER:
                shift += z - pivot[:, None, :]
            if INFORM:
                top, scale = scale_of(z, member, inside)
                mass += softmax(z, top, scale, inside)
                at = scales_of(scales, first, start, begin, ROWS)
                tl.store(at, top, mask=member)
                tl.store(at + 1, scale, mask=member)
        shifts += tl.sum(shift, 1)
        masses += tl.sum(mass, 1)
    return shifts, masses


@triton.jit
def terms_of(
    features, strides, first, start, stop, longest, index, scales, center, log_of_q, alpha, beta, columns, inside,
    CENTER: tl.constexpr, INFORM: tl.constexpr, EXPONENTIAL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Spread and kl of the program's rows, (CLASSES,), and the sum of their pull on c, (CLASSES, WIDTH)."""
    CLASSES: tl.constexpr = center.shape[0]
    WIDTH: tl.constexpr = center.shape[1]
    WIDE: tl.constexpr = WIDTH >= 4096  # sums for every element would need more registers than a thread has
    BY_ROW: tl.constexpr = EXPONENTIAL or WIDE
    dtype: tl.constexpr = center.dtype
    spreads, kls = tl.zeros((CLASSES,), dtype), tl.zeros((CLASSES,), dtype)
    pulls = tl.zeros((CLASSES, WIDTH), dtype)
    for chain in range(0, longest, CHAIN * ROWS):
        spread = tl.zeros((CLASSES, ROWS) if BY_ROW else (CLASSES, ROWS, WIDTH), dtype)
        kl = tl.zeros((CLASSES, ROWS) if WIDE else (CLASSES, ROWS, WIDTH), dtype)
        pulled = tl.zeros((CLASSES, ROWS, WIDTH), dtype)
        for begin in range(chain, tl.minimum(chain + CHAIN * ROWS, longest), ROWS):
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
                at = scales_of(scales, first, start, begin, ROWS)
                top, scale = tl.load(at, mask=member, other=0), tl.load(at + 1, mask=member, other=0)
                summands = divergence(softmax(z, top, scale, inside), log_of_q)
                kl += tl.sum(summands, 2) if WIDE else summands
        spread, kl = tl.sum(spread, 1), tl.sum(kl, 1)
        spreads += spread if BY_ROW else tl.sum(spread, 1)
        kls += kl if WIDE else tl.sum(kl, 1)
        pulls += tl.sum(pulled, 1)
    return spreads, kls, pulls


@triton.jit
def over_splits(partials, k, exists, splits, width, columns, inside, ROWS: tl.constexpr):
    """The sums over the splits: (K, splits, E) -> (CLASSES, WIDTH)."""
    total = tl.zeros((k.shape[0], ROWS, columns.shape[0]), partials.dtype.element_ty)
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)[None, :]
        member = exists[:, None] & (split < splits)
        cells = cells_of(k[:, None] * splits + split, columns, (width, 1))
        mask = member[:, :, None] & inside[None, None, :]
        total += tl.load(partials + cells, mask=mask, other=0, cache_modifier=".cg")
    return tl.sum(total, 1)


@triton.jit
def is_last(ticket, programs):
    """Takes a ticket: whether all the other `programs` have one, so that what they stored before can be read."""
    tl.debug_barrier()  # what all threads of this program stored comes before its ticket
    return tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == programs - 1


@triton.jit
def add_up(
    parts, loss, terms, classes, splits, centralization_weight, cmi_weight, share,
    CENTER: tl.constexpr, INFORM: tl.constexpr, PER_CLASS: tl.constexpr,
    CLASSES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The loss, () or (K,), and its terms from (K, splits, 2), CLASSES x SPLITS at a time."""
    dtype: tl.constexpr = parts.dtype.element_ty
    centralization_weight = tl.full((), centralization_weight, dtype)
    cmi_weight, share = tl.full((), cmi_weight, dtype), tl.full((), share, dtype)
    spreads, kls = tl.zeros((CLASSES,), dtype), tl.zeros((CLASSES,), dtype)
    for begin in range(0, classes, CLASSES):
        k = begin + tl.arange(0, CLASSES)
        spread, kl = tl.zeros((CLASSES, SPLITS), dtype), tl.zeros((CLASSES, SPLITS), dtype)
        for first in range(0, splits, SPLITS):
            split = first + tl.arange(0, SPLITS)[None, :]
            cells = parts + (k[:, None] * splits + split) * 2
            mask = (k < classes)[:, None] & (split < splits)
            if CENTER:
                spread += tl.load(cells, mask=mask, other=0, cache_modifier=".cg")
            if INFORM:
                kl += tl.load(cells + 1, mask=mask, other=0, cache_modifier=".cg")
        of_spread, of_kl = tl.sum(spread, 1), tl.sum(kl, 1) * share
        if PER_CLASS:
            tl.store(loss + k, centralization_weight * of_spread + cmi_weight * of_kl, mask=k < classes)
        spreads += of_spread
        kls += of_kl

    spread_of_all, kl_of_all = tl.sum(spreads), tl.sum(kls)
    tl.store(terms, spread_of_all)
    tl.store(terms + 1, kl_of_all)
    if not PER_CLASS:
        tl.store(loss, centralization_weight * spread_of_all + cmi_weight * kl_of_all)
