"""Sums and second moments of every class about a pivot, in one pass over the features.

With y = x − pivot of the class, a program adds up over its rows

    sums[d, p]     = sum_n y[n, d, p]
    products[d, e] = sum_n sum_p y[n, d, p]·y[n, e, p]

from which `matching` has M = pivot + sums/N and Sigma = (products − sum_p sums·sums^T/N)/N. The pivot is the class's
first row: it is of the size of the mean, so nothing cancels that the spread does not outweigh, and the partials of one
class are about the same pivot, so that they simply add.
"""

import triton
import triton.language as tl


@triton.jit
def finite_or_zero(pivot):
    """An infinite pivot would make a NaN of every mean; NaN in a row is still met where the row is read."""
    return tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)


@triton.jit
def round_to_tf32(x):
    """To the nearest value with 10 bits of mantissa; what is left, x − rounded, is exact and small.

    The sum of bits would turn the NaN of a GPU, 0x7fffffff, into −0.
    """
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)


@triton.jit
def triangle(t):
    """Number t of the pairs (i, j) with i <= j, in the order (0, 0), (0, 1), (1, 1), (0, 2), ..."""
    j = ((tl.sqrt(8.0 * t + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > t, j - 1, j)  # where the root was rounded up
    j = tl.where((j + 1) * (j + 2) // 2 <= t, j + 1, j)
    return t - j * (j + 1) // 2, j


@triton.jit
def descriptor(d, b, stride_a, stride_b):
    """Where local descriptor d of A·B lies in an image, which is smaller than 2^31."""
    return (d // b) * stride_a + (d % b) * stride_b


@triton.jit
def multiple(n, OF: tl.constexpr):
    """n, which is a multiple of OF, in a form that shows it: the compiler makes accesses as wide as it can prove.

    Of an argument it knows only whether 16 is a divisor.
    """
    return n if OF == 1 else n // OF * OF


@triton.jit
def bounds(k, offsets, largest, RAGGED: tl.constexpr):
    """The first position of class k in the row index (or among the rows) and its count."""
    if RAGGED:
        begin = tl.load(offsets + k)
        return begin, tl.load(offsets + k + 1) - begin
    return k.to(tl.int64) * largest, tl.full((), 0, tl.int64) + largest


@triton.jit
def row_of(position, index, mask, RAGGED: tl.constexpr):
    """The row of the features at a position of the row index."""
    if RAGGED:
        return tl.load(index + position, mask=mask, other=0)
    return position


@triton.jit
def images_at(x, stride, position, real_index, index, of_real, mask, REAL_RAGGED: tl.constexpr, RAGGED: tl.constexpr):
    """Where the rows of a side at these positions begin: [1, positions]."""
    if of_real:  # noqa: SIM108  a ternary takes scalars alone
        source = row_of(position, real_index, mask, REAL_RAGGED)
    else:
        source = row_of(position, index, mask, RAGGED)
    return (x + source * stride)[None, :]


@triton.jit
def deviations(x, pivot, mask):
    """y = x − pivot, zeros outside."""
    return tl.where(mask, tl.load(x, mask=mask, other=0.0).to(pivot.dtype) - pivot, 0.0)


@triton.jit
def product(left, right, PRECISION: tl.constexpr):
    """left·right^T of one step, to be added to the sum of all steps by an ordinary addition.

    A tensor core truncates what it adds to an accumulator, and over thousands of terms that is a bias which the small
    difference of two covariances shows. So an accumulator sees one step, and small products before large ones.
    """
    if PRECISION == "float32":
        hi, other = round_to_tf32(left), round_to_tf32(right)
        part = tl.dot(hi, tl.trans(right - other), input_precision="tf32")
        part = tl.dot(left - hi, tl.trans(other), part, input_precision="tf32")
        part = tl.dot(hi, tl.trans(other), part, input_precision="tf32")
    elif PRECISION == "tf32":  # with max_num_imprecise_acc, which only float8 obeys, no pass moves the sum into the dot
        part = tl.dot(left, tl.trans(right), input_precision="tf32", max_num_imprecise_acc=1)
    else:
        part = tl.dot(left, tl.trans(right), out_dtype=tl.float64)
    return part


@triton.jit
def half_square(y):
    """Half of y·y^T of one step in two products instead of three: the other half is its transpose."""
    hi = round_to_tf32(y)
    part = tl.dot(hi, tl.trans(y - hi), input_precision="tf32")
    return tl.dot(hi, tl.trans(hi * 0.5), part, input_precision="tf32")


@triton.jit(do_not_specialize=["real_largest", "real_rows", "real_splits", "largest", "rows", "splits", "classes"])
def moments_kernel(
    real,  # (N, A, B, P)
    real_offsets,  # (K + 1,) or None
    real_index,  # (N,) or None
    syn,  # (M, A, B, P)
    offsets,
    index,
    sums,  # (splits of both sides, K, D, P)
    products,  # (splits of both sides, K, TILES, BLOCK, BLOCK), or None
    ticket,  # (1,), or None: set to 0 for the launch that follows
    real_largest,
    real_rows,  # rows of a class that one program reads
    real_splits,
    largest,
    rows,
    splits,
    classes,
    d,  # A·B
    b,
    p,
    real_stride_n,
    stride_n,
    stride_a,  # the inner strides are those of both sides
    stride_b,
    stride_p,
    TILES: tl.constexpr,  # tiles of the upper triangle, or of the diagonal without products
    BLOCK: tl.constexpr,  # descriptors of a tile
    PART: tl.constexpr,  # descriptors of what `merge` reads at a time
    ROWS: tl.constexpr,  # rows and positions of a step
    BLOCK_P: tl.constexpr,
    FULL: tl.constexpr,  # neither descriptors nor positions are left over
    REAL_RAGGED: tl.constexpr,
    RAGGED: tl.constexpr,
    COVARIANCE: tl.constexpr,
    PRECISION: tl.constexpr,  # of the products: float32, tf32 or float64
    DIVISOR: tl.constexpr,  # of p and of the strides of a and b, where Triton does not know one
):
    p, stride_a, stride_b = multiple(p, DIVISOR), multiple(stride_a, DIVISOR), multiple(stride_b, DIVISOR)
    pid = tl.program_id(0).to(tl.int64)
    if ticket is not None:  # noqa: SIM102  known when compiling, and the program when running
        if pid == 0:
            tl.store(ticket, 0)
    tile = (pid % TILES).to(tl.int32)
    k = (pid // TILES) % classes
    split = pid // TILES // classes  # real ones first: they are longer
    if split < real_splits:
        x, stride, part, each = real, real_stride_n, split, real_rows
        begin, count = bounds(k, real_offsets, real_largest, REAL_RAGGED)
    else:
        x, stride, part, each = syn, stride_n, split - real_splits, rows
        begin, count = bounds(k, offsets, largest, RAGGED)
    first = part * each
    last = tl.minimum(first + each, count)
    if COVARIANCE and TILES > 1:
        i, j = triangle(tile)
    else:
        i, j = tile, tile

    SUM: tl.constexpr = tl.float64 if PRECISION == "float64" else tl.float32
    slot = tl.arange(0, ROWS * BLOCK_P) // BLOCK_P
    left = i * BLOCK + tl.arange(0, BLOCK)
    right = j * BLOCK + tl.arange(0, BLOCK)
    HALF: tl.constexpr = PRECISION == "float32"  # of its products is what a tile on the diagonal adds up
    summed = tl.zeros((BLOCK, BLOCK), SUM)
    if split < real_splits:
        origin = x + row_of(begin, real_index, count > 0, REAL_RAGGED) * stride
    else:
        origin = x + row_of(begin, index, count > 0, RAGGED) * stride
    for start in range(0, p, BLOCK_P):
        place = start + tl.arange(0, ROWS * BLOCK_P) % BLOCK_P
        left_at = descriptor(left, b, stride_a, stride_b)[:, None] + place[None, :] * stride_p
        right_at = descriptor(right, b, stride_a, stride_b)[:, None] + place[None, :] * stride_p
        in_left = (left < d)[:, None] & (place < p)[None, :]
        in_right = (right < d)[:, None] & (place < p)[None, :]
        left_pivot = finite_or_zero(tl.load(origin + left_at, mask=in_left, other=0.0).to(SUM))
        right_pivot = left_pivot
        if TILES > 1 and COVARIANCE:
            right_pivot = finite_or_zero(tl.load(origin + right_at, mask=in_right, other=0.0).to(SUM))

        total = tl.zeros((BLOCK, ROWS * BLOCK_P), SUM)  # of each slot by itself until the end
        if i == j:
            for r in range(first, last, ROWS):
                row = r + slot
                image = images_at(
                    x, stride, begin + row, real_index, index, split < real_splits, row < last, REAL_RAGGED, RAGGED
                )
                met = (row < last)[None, :]
                y = deviations(image + left_at, left_pivot, met if FULL else met & in_left)
                total += y
                if COVARIANCE:
                    if HALF:
                        summed += half_square(y)
                    else:
                        summed += product(y, y, PRECISION)
        if TILES > 1 and COVARIANCE:  # noqa: SIM102  known when compiling, and the tile when running
            if i != j:  # another loop, so that each is pipelined
                for r in range(first, last, ROWS):
                    row = r + slot
                    image = images_at(
                        x, stride, begin + row, real_index, index, split < real_splits, row < last, REAL_RAGGED, RAGGED
                    )
                    met = (row < last)[None, :]
                    y = deviations(image + left_at, left_pivot, met if FULL else met & in_left)
                    z = deviations(image + right_at, right_pivot, met if FULL else met & in_right)
                    summed += product(y, z, PRECISION)

        if i == j:
            of_rows = tl.sum(tl.reshape(total, (BLOCK, ROWS, BLOCK_P)), 1)
            column = start + tl.arange(0, BLOCK_P)
            at_sums = sums + ((split * classes + k) * d + left[:, None]) * p + column[None, :]
            tl.store(at_sums, of_rows, mask=(left < d)[:, None] & (column < p)[None, :])

    if COVARIANCE:
        if HALF:  # noqa: SIM102  known when compiling, and the tile when running
            if i == j:
                summed += tl.trans(summed)
        out = products + ((split * classes + k) * TILES + tile) * (BLOCK * BLOCK)
        inner = tl.arange(0, BLOCK)
        used = (inner // PART)[:, None] <= (inner // PART)[None, :] if TILES == 1 else (inner < BLOCK)[None, :]
        tl.store(out + inner[:, None] * BLOCK + inner[None, :], summed, mask=used)
