"""From the partial sums of `moments` to the loss and what its backward needs.

M = pivot + sums/N,   Sigma = (products − sum_p sums·sums^T/N)/N
D = M_s − M_r,        Delta = Sigma_s − Sigma_r,        loss = w'·sum_k ||D||² + w·sum_k ||Delta||_F²
"""

import triton
import triton.language as tl

from .moments import bounds, descriptor, finite_or_zero, multiple, product, row_of, triangle


@triton.jit
def total_sums(sums, first_split, splits, k, classes, row, d, p, place, inside, SUM: tl.constexpr):
    """The partials of a class added up, always in the same order."""
    total = tl.zeros((row.shape[0], place.shape[0]), SUM)
    for split in range(first_split, first_split + splits):
        at = sums + ((split * classes + k) * d + row[:, None]) * p + place[None, :]
        total += tl.load(at, mask=inside, other=0.0)
    return total


@triton.jit
def second_moment(
    sums, products, first_split, splits, k, classes, count, u, v, d, p,
    TILES: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, BLOCK_P: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Part (u, v) of Sigma, u <= v: [PART, PART]."""
    row, column = u * PART + tl.arange(0, PART), v * PART + tl.arange(0, PART)
    i, j = u * PART // BLOCK, v * PART // BLOCK
    inner = (row % BLOCK)[:, None] * BLOCK + (column % BLOCK)[None, :]
    total = tl.zeros((PART, PART), SUM)
    for split in range(first_split, first_split + splits):
        total += tl.load(products + ((split * classes + k) * TILES + j * (j + 1) // 2 + i) * (BLOCK * BLOCK) + inner)
    per_row = 1.0 / tl.maximum(count, 1).to(SUM)
    PRECISION: tl.constexpr = "float32" if tl.float32 == SUM else "float64"
    square = tl.zeros((PART, PART), SUM)
    for start in range(0, p, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)
        in_row = (row < d)[:, None] & (place < p)[None, :]
        in_column = (column < d)[:, None] & (place < p)[None, :]
        left = total_sums(sums, first_split, splits, k, classes, row, d, p, place, in_row, SUM)
        right = total_sums(sums, first_split, splits, k, classes, column, d, p, place, in_column, SUM)
        square += product(left, right, PRECISION)
    return (total - square * per_row) * per_row


@triton.jit
def mean_of(
    x, offsets, index, begin, count, sums, first_split, splits, k, classes, row, place, d, b, p,
    stride_n, stride_a, stride_b, stride_p, RAGGED: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The mean of a class and what rounding took off it: [PART, BLOCK_P] each."""
    origin = row_of(begin, index, count > 0, RAGGED)
    inside = (row < tl.where(count > 0, d, 0))[:, None] & (place < p)[None, :]  # an empty class has no first row
    at = descriptor(row, b, stride_a, stride_b)[:, None] + place[None, :] * stride_p
    pivot = finite_or_zero(tl.load(x + origin * stride_n + at, mask=inside, other=0.0).to(SUM))
    total = total_sums(sums, first_split, splits, k, classes, row, d, p, place, inside, SUM)
    shift = total * (1.0 / tl.maximum(count, 1).to(SUM))
    mean = pivot + shift
    rounded = mean - pivot  # Knuth's two-sum: exact, whichever is larger
    return mean, finite_or_zero((pivot - (mean - rounded)) + (shift - rounded))


@triton.jit
def total_squares(squares, count, BLOCK: tl.constexpr, SUM: tl.constexpr):
    """The squares of all programs, added up in the order of their places; read past what this processor has cached."""
    place = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), SUM)
    for start in range(0, count, BLOCK):
        total += tl.load(squares + start + place, mask=start + place < count, other=0.0, cache_modifier=".cg")
    return tl.sum(total)


@triton.jit(do_not_specialize=["real_largest", "real_splits", "largest", "splits", "classes"])
def merge_kernel(
    real,  # (N, A, B, P), or its class means (K, D, P)
    real_covariances,  # (K, D, D), where `real` is means
    real_counts,  # (K,) likewise
    real_offsets,
    real_index,
    syn,  # (M, A, B, P)
    offsets,
    index,
    sums,  # as `moments` left them
    products,
    share,  # (K,), or None: no gradient is needed
    centers,  # (K, D, P)
    drift,  # (K, D, P)
    mean_gap,  # (K, D, P)
    covariance_gap,  # (K, D, D)
    squares,  # (2, K, PARTS): of D and Delta; without a real side this, the ticket, loss and terms are None
    ticket,  # (1,), 0 before the launch and after it: how many programs have ended
    loss,  # ()
    terms,  # (2,)
    mean_weight: tl.float64,
    covariance_weight: tl.float64,
    real_largest,
    real_splits,
    largest,
    splits,
    classes,
    d,
    b,
    p,
    real_stride_n,
    real_stride_a,
    real_stride_b,
    real_stride_p,
    stride_n,
    stride_a,
    stride_b,
    stride_p,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,  # of the upper triangle of Sigma, or of its diagonal without products
    PART: tl.constexpr,
    BLOCK_P: tl.constexpr,
    REAL: tl.constexpr,  # features, moments or none
    REAL_RAGGED: tl.constexpr,
    RAGGED: tl.constexpr,
    MEAN: tl.constexpr,
    COVARIANCE: tl.constexpr,
    STATE: tl.constexpr,
    SUM: tl.constexpr,
    SQUARES: tl.constexpr,  # that the last program adds up at a time
    DIVISOR: tl.constexpr,  # of p and of all strides of a and b, where Triton does not know one
):
    p = multiple(p, DIVISOR)
    stride_a, stride_b = multiple(stride_a, DIVISOR), multiple(stride_b, DIVISOR)
    real_stride_a, real_stride_b = multiple(real_stride_a, DIVISOR), multiple(real_stride_b, DIVISOR)
    pid = tl.program_id(0).to(tl.int64)
    part, k = (pid % PARTS).to(tl.int32), pid // PARTS
    if COVARIANCE:
        u, v = triangle(part)
    else:
        u, v = part, part
    begin, count = bounds(k, offsets, largest, RAGGED)
    real_begin, real_count = begin, count
    if REAL == "features":
        real_begin, real_count = bounds(k, real_offsets, real_largest, REAL_RAGGED)
    elif REAL == "moments":
        real_count = tl.load(real_counts + k)
    matched = (count > 0) & (real_count > 0)
    compared = tl.where(matched, d, 0)  # descriptors of a class whose counterpart is empty are not
    if STATE and part == 0:
        tl.store(share + k, tl.where(matched, 1.0 / tl.maximum(count, 1).to(SUM), 0.0))

    row, column = u * PART + tl.arange(0, PART), v * PART + tl.arange(0, PART)
    if COVARIANCE:
        delta = second_moment(
            sums, products, real_splits, splits, k, classes, count, u, v, d, p, TILES, BLOCK, PART, BLOCK_P, SUM
        )
        inside = (row < d)[:, None] & (column < d)[None, :]
        at = (k * d + row[:, None]) * d + column[None, :]
        if REAL == "features":
            delta -= second_moment(
                sums, products, 0, real_splits, k, classes, real_count, u, v, d, p, TILES, BLOCK, PART, BLOCK_P, SUM
            )
        elif REAL == "moments":
            delta -= tl.load(real_covariances + at, mask=inside, other=0.0).to(SUM)
        delta = tl.where((row < compared)[:, None] & (column < compared)[None, :], delta, 0.0)
        if STATE or REAL == "none":
            tl.store(covariance_gap + at, delta, mask=inside)
            if u != v:
                mirrored = (k * d + column[:, None]) * d + row[None, :]
                tl.store(covariance_gap + mirrored, tl.trans(delta), mask=tl.trans(inside))
        if REAL != "none":
            twice = tl.where(u == v, 1.0, 2.0).to(SUM)
            tl.store(squares + (classes + k) * PARTS + part, twice * tl.sum(delta * delta))

    distance = tl.zeros((PART,), SUM)
    if u == v and (MEAN or REAL == "none" or (STATE and COVARIANCE)):
        for start in range(0, p, BLOCK_P):
            place = start + tl.arange(0, BLOCK_P)
            in_mean = (row < d)[:, None] & (place < p)[None, :]
            at_mean = (k * d + row[:, None]) * p + place[None, :]
            mean, rest = mean_of(
                syn, offsets, index, begin, count, sums, real_splits, splits, k, classes, row, place, d, b, p,
                stride_n, stride_a, stride_b, stride_p, RAGGED, SUM,
            )  # fmt: skip
            if REAL == "none" or (STATE and COVARIANCE):
                tl.store(centers + at_mean, mean, mask=in_mean)
            if REAL != "none" and STATE and COVARIANCE:
                tl.store(drift + at_mean, rest, mask=in_mean)
            if MEAN:
                if REAL == "features":
                    other, other_rest = mean_of(
                        real, real_offsets, real_index, real_begin, real_count, sums, 0, real_splits, k, classes,
                        row, place, d, b, p, real_stride_n, real_stride_a, real_stride_b, real_stride_p,
                        REAL_RAGGED, SUM,
                    )  # fmt: skip
                    gap = (mean - other) + (rest - other_rest)
                else:  # float64 means against float32 features keep their digits
                    other = tl.load(real + at_mean, mask=in_mean, other=0.0).to(tl.float64)
                    gap = ((mean.to(tl.float64) - other) + rest.to(tl.float64)).to(SUM)
                gap = tl.where((row < compared)[:, None] & (place < p)[None, :], gap, 0.0)
                if STATE:
                    tl.store(mean_gap + at_mean, gap, mask=in_mean)
                distance += tl.sum(gap * gap, 1)
    if MEAN:
        tl.store(squares + k * PARTS + part, tl.sum(distance))

    if REAL != "none":
        tl.debug_barrier()  # what all threads of the program have written comes before its ticket
        if tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1:  # the last program to end
            count = classes.to(tl.int64) * PARTS
            first, second = tl.zeros((), SUM), tl.zeros((), SUM)
            if MEAN:
                first = total_squares(squares, count, SQUARES, SUM)
            if COVARIANCE:
                second = total_squares(squares + count, count, SQUARES, SUM)
            tl.store(terms, first)
            tl.store(terms + 1, second)
            tl.store(loss, tl.full((), mean_weight, SUM) * first + tl.full((), covariance_weight, SUM) * second)
            tl.store(ticket, 0)
