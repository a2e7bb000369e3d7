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
def scale_of(z, member, inside):
    """The maximum of each row and 1 / sum exp(z − maximum), which is 0 for a row that does not exist."""
    top = tl.max(tl.where(inside[None, None, :], z, -float("inf")), 2)
    return top, tl.where(member, 1 / tl.sum(grown_of(z, top, inside), 2), 0)


@triton.jit
def grown_of(z, top, inside):
    """exp(z − maximum), zero in features that do not exist."""
    return tl.exp(tl.where(inside[None, None, :], z - top[:, :, None], -float("inf")))


@triton.jit
def softmax(z, top, scale, inside):
    """P, zero in rows and features that do not exist."""
    return grown_of(z, top, inside) * scale[:, :, None]


@triton.jit
def log(x):
    """log x within one unit in the last place where x is a normal number, by half the instructions of `tl.log`.

    x = 2^n·m with m in [2/3, 4/3), and log m is a polynomial of m − 1. Of 0 and of denormal numbers it says about −88,
    and of NaN anything finite: it is to be multiplied by x.
    """
    if x.dtype == tl.float64:
        return tl.log(tl.where(x == 0, 1, x))
    else:  # noqa: RET505  Triton 3.6 compiles what follows a return
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F2AAAAB) & -0x800000
        t = (bits - exponent).to(tl.float32, bitcast=True) - 1
        series = tl.fma(t, -0.12429866194725037, 0.13433775305747986)
        series = tl.fma(t, series, -0.12287236750125885)
        series = tl.fma(t, series, 0.14116978645324707)
        series = tl.fma(t, series, -0.166733980178833)
        series = tl.fma(t, series, 0.2000383585691452)
        series = tl.fma(t, series, -0.24999943375587463)
        series = tl.fma(t, series, 0.33333319425582886)
        series = tl.fma(t, series, -0.5)
        return tl.fma(exponent.to(tl.float32), 8.262958294867817e-08, tl.fma(t * t, series, t))  # log 2 / 2^23


@triton.jit
def divergence(p, log_q):
    """The summands of the KL in its direct form, with 0·log 0 = 0.

    The logarithm is of P as rounded, of which Q is the mean: log sum exp off by 1e-7 would be off by as much in each
    summand, all to the same side, which is 1e-7 of the KL and may be all of it.
    """
    return p * (log(p) - log_q[:, None, :])


@triton.jit
def pull(squared, alpha, beta):
    """d max(0, exp(alpha·s) − beta) / ds."""
    grown = tl.exp(alpha * squared)
    return tl.where(grown < beta, 0, alpha * grown)
