"""What the complexity kernels share: which rows of which classes a program takes, and the maths of a row."""

import triton
import triton.language as tl

SIZES = ["largest", "splits", "classes"]  # they change from call to call: no kernel is compiled anew for their values


@triton.jit
def classes_of(offsets, largest, classes, splits, CLASSES: tl.constexpr, ROWS: tl.constexpr):
    """This program's classes (CLASSES,): which exist, first positions and counts; the rows [start, stop) of each that
    it takes, and the most rows that it takes of any."""
    k = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    exists = k < classes
    if offsets is None:
        first = k.to(tl.int64) * largest
        count = tl.where(exists, largest, 0)
    else:
        first = tl.load(offsets + k, mask=exists, other=0)
        count = (tl.load(offsets + k + 1, mask=exists, other=0) - first).to(tl.int32)
    share = tl.cdiv(tl.cdiv(count, splits), ROWS) * ROWS
    start = tl.minimum(tl.program_id(1) * share, count)
    stop = tl.minimum(start + share, count)
    return k.to(tl.int64), exists, first, count, start, stop, tl.max(stop - start, 0)


@triton.jit
def columns_of(width, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """The features, as int64 for the sake of their stride, and which of them exist; FULL folds that to a constant."""
    columns = tl.arange(0, WIDTH).to(tl.int64)
    return columns, tl.full((WIDTH,), True, tl.int1) if FULL else columns < width


@triton.jit
def rows_of(first, start, begin, stop, index, ROWS: tl.constexpr):
    """The next ROWS rows of each class, from start + begin on, and which of them lie before stop: (CLASSES, ROWS)."""
    rank = (start + begin)[:, None] + tl.arange(0, ROWS)[None, :]
    rows, member = first[:, None] + rank, rank < stop[:, None]
    if index is not None:
        rows = tl.load(index + rows, mask=member, other=0)
    return rows, member


@triton.jit
def cells_of(rows, columns, strides):
    return rows[:, :, None] * strides[0] + columns[None, None, :] * strides[1]


@triton.jit
def pivot_of(features, strides, first, count, index, columns, inside):
    """The first row of each class, zeros where there is none."""
    row = first
    if index is not None:
        row = tl.load(index + first, mask=count > 0, other=0)
    cells = row[:, None] * strides[0] + columns[None, :] * strides[1]
    return tl.load(features + cells, mask=(count > 0)[:, None] & inside[None, :], other=0)


@triton.jit
def softmax(z, member, inside):
    """P, zero in rows and features that do not exist."""
    z = tl.where(inside[None, None, :], z, -float("inf"))
    grown = tl.exp(z - tl.max(z, 2)[:, :, None])
    return grown * tl.where(member, 1 / tl.sum(grown, 2), 0)[:, :, None]


@triton.jit
def divergence(p, log_q):
    """The summands of the KL in its direct form, with 0·log 0 = 0.

    The logarithm is of P as rounded, of which Q is the mean: log sum exp off by 1e-7 would be off by as much in each
    summand, all to the same side, which is 1e-7 of the KL and may be all of it.
    """
    return p * (tl.log(tl.where(p == 0, 1, p)) - log_q[:, None, :])


@triton.jit
def pull(squared, alpha, beta):
    """d max(0, exp(alpha·s) − beta) / ds."""
    grown = tl.exp(alpha * squared)
    return tl.where(grown < beta, 0, alpha * grown)
