"""The gradient of moment matching, dL/dF_n = (4w/N)·Delta·(F_n − M) + (2w'/N)·D, for a block of rows and descriptors.

F − M is formed from the features as they are read, less the mean and less what rounding took off it.
"""

import triton
import triton.language as tl

from .moments import bounds, descriptor, multiple, product, row_of


@triton.jit(do_not_specialize=["largest", "blocks"])
def backward_kernel(
    gradient,  # like syn
    upstream,  # ()
    syn,  # (M, A, B, P)
    offsets,
    index,
    share,  # (K,)
    centers,  # (K, D, P)
    drift,  # (K, D, P)
    mean_gap,  # (K, D, P)
    covariance_gap,  # (K, D, D)
    mean_weight: tl.float64,
    covariance_weight: tl.float64,
    largest,
    blocks,  # of rows, in the largest class
    d,
    b,
    p,
    stride_n,
    stride_a,
    stride_b,
    stride_p,
    out_stride_n,
    out_stride_a,
    out_stride_b,
    out_stride_p,
    TILES: tl.constexpr,  # of BLOCK descriptors
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,  # descriptors that are multiplied at a time
    ROWS: tl.constexpr,  # rows and positions of a program
    BLOCK_P: tl.constexpr,
    RAGGED: tl.constexpr,
    MEAN: tl.constexpr,
    COVARIANCE: tl.constexpr,
    PRECISION: tl.constexpr,  # of the product: float32, tf32 or float64
    SUM: tl.constexpr,
    DIVISOR: tl.constexpr,  # of p and of all strides of a and b, where Triton does not know one
):
    p = multiple(p, DIVISOR)
    stride_a, stride_b = multiple(stride_a, DIVISOR), multiple(stride_b, DIVISOR)
    out_stride_a, out_stride_b = multiple(out_stride_a, DIVISOR), multiple(out_stride_b, DIVISOR)
    pid = tl.program_id(0).to(tl.int64)
    tile = (pid % TILES).to(tl.int32)
    block = (pid // TILES % blocks).to(tl.int32)
    k = pid // TILES // blocks
    start = tl.program_id(1) * BLOCK_P
    begin, count = bounds(k, offsets, largest, RAGGED)

    slot = tl.arange(0, ROWS * BLOCK_P)
    row = block * ROWS + slot // BLOCK_P
    place = start + slot % BLOCK_P
    real = (row < count) & (place < p)
    source = row_of(begin + row, index, real, RAGGED)
    wanted = tile * BLOCK + tl.arange(0, BLOCK)
    pulled = tl.zeros((BLOCK, ROWS * BLOCK_P), SUM)
    scale = tl.load(share + k)
    if COVARIANCE:
        within = source * stride_n + place.to(tl.int64) * stride_p
        for first in range(0, d, STEP):
            other = first + tl.arange(0, STEP)
            inside = (other < d)[:, None] & real[None, :]
            x = tl.load(
                syn + descriptor(other, b, stride_a, stride_b)[:, None] + within[None, :], mask=inside, other=0.0
            )
            at = (k * d + other[:, None]) * p + place[None, :]
            center = tl.load(centers + at, mask=inside, other=0.0)
            y = x.to(SUM) - center - tl.load(drift + at, mask=inside, other=0.0)
            delta = tl.load(
                covariance_gap + (k * d + wanted[:, None]) * d + other[None, :],
                mask=(wanted < d)[:, None] & (other < d)[None, :],
                other=0.0,
            )
            pulled += product(delta, tl.trans(y), PRECISION)
        pulled *= 4.0 * tl.full((), covariance_weight, SUM)
    inside = (wanted < d)[:, None] & real[None, :]
    if MEAN:
        gap = tl.load(mean_gap + (k * d + wanted[:, None]) * p + place[None, :], mask=inside, other=0.0)
        pulled += 2.0 * tl.full((), mean_weight, SUM) * gap
    pulled = tl.where(scale == 0, 0.0, pulled * (scale * tl.load(upstream)))
    at = source * out_stride_n + place.to(tl.int64) * out_stride_p
    at = descriptor(wanted, b, out_stride_a, out_stride_b)[:, None] + at[None, :]
    tl.store(gradient + at, pulled.to(gradient.dtype.element_ty), mask=inside)
