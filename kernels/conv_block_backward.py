"""The gradient of `conv_block` to the images; the map that was never written is convolved again.

With G = dL/dx of the map (N, C, h, w) and the taps k (C, c, 3, 3):

    tap_products    T[i, dy, dx] = sum_C k[C, i, dy, dx]·G[C], at each pixel of the map; over `splits` parts of C
    image_gradient  dL/dimages[i] at (y, x) = the sum over dy, dx and the parts of T[i, dy, dx] at (y − dy, x − dx)

so that no product is needed at any but its own pixel, and all sums have a fixed order. Where a plane does not fit into
a tile, `block_backward` has written G's sums over planes.
"""

import triton
import triton.language as tl

from .block_tiles import SIZES, affine_of, extent_of, factors_of, lacking, load_channels, multiplied, pixels_of, tile_of
from .blocks_backward import map_gradient, upstream_of


@triton.jit(do_not_specialize=SIZES)
def tap_products(
    grad,  # (N, channels, height // 2, width // 2)
    source,  # (N, INPUTS, image_height, image_width)
    taps,  # (INPUTS, 3, 3, channels) or, where TERMS, (channels, INPUTS, 3, 3)
    weight,  # (channels,), as `bias`, or None
    bias,
    means,  # (N, channels), as `rstds`
    rstds,
    sums,  # (2, N, channels) of `block_backward`, or None where WHOLE
    products,  # (N, splits, INPUTS, 3, 3, height, width)
    images,  # N
    channels,
    height,
    width,
    inputs,  # INPUTS, as no constant
    image_height,
    image_width,
    padding,
    tiles,
    splits,
    INPUTS: tl.constexpr,
    LAST: tl.constexpr,
    DOUBLE: tl.constexpr,
    FULL: tl.constexpr,
    WHOLE: tl.constexpr,
    TERMS: tl.constexpr,  # of the products if tensor cores form them, else 0
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    height, width = extent_of(height, width, FULL, WHOLE, ROWS, WIDTH)
    shape = (channels, height, width, inputs, image_height, image_width, padding)
    part, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n, split = (part // splits).to(tl.int64), part % splits
    share = tl.cdiv(tl.cdiv(channels, CHANNELS), splits) * CHANNELS
    count = tl.full((), 1, dtype) * (height * width)

    together = tl.zeros((max(TERMS, 1), ROWS * WIDTH), dtype)
    by_tap = ()
    for _ in tl.static_range(0 if TERMS else 9 * INPUTS):
        by_tap = by_tap + (tl.zeros((ROWS * WIDTH,), dtype),)  # noqa: RUF005  Triton knows no other way
    for begin in range(split * share, tl.minimum(split * share + share, channels), CHANNELS):
        c = begin + tl.arange(0, CHANNELS).to(tl.int64)
        scale, shift = affine_of(weight, bias, c, channels, dtype)
        mean = load_channels(means + n * channels, c, channels, dtype)
        rstd = load_channels(rstds + n * channels, c, channels, dtype)
        factors = factors_of(source, taps, n, c, channels, inputs, image_height, image_width, LAST, TERMS, PRECISION)
        if TERMS:
            mean -= lacking(*factors, c, PRECISION)
        scale *= rstd
        row, column, inside, x = tile_of(
            source, taps, factors, n, c, tile, shape, dtype, True, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
        )
        centred = x - mean[:, None]
        d = upstream_of(
            grad,
            None,
            centred,
            scale,
            shift,
            n,
            c,
            row,
            column,
            inside,
            shape,
            tile,
            True,
            True,
            LAST,
            FULL,
            TERMS,
            ROWS,
            WIDTH,
        )
        if WHOLE:
            total, inner = tl.sum(d, 1), tl.sum(d * centred, 1) * rstd
        else:
            inner = load_channels(sums + n * channels, c, channels, dtype)
            total = load_channels(sums + (images + n) * channels, c, channels, dtype)
        gradient = map_gradient(d, centred, scale, rstd, total, inner, count)
        if TERMS:
            if source.dtype.element_ty.primitive_bitwidth == 16:
                gradient = gradient.to(source.dtype.element_ty)
            matrix, _ = factors
            together += multiplied(tl.trans(matrix), gradient.to(matrix.dtype), PRECISION)
        grown = ()
        for tap in tl.static_range(0 if TERMS else 9 * INPUTS):
            factor = load_channels(taps + tap * channels, c, channels, dtype)
            grown = grown + (by_tap[tap] + tl.sum(factor[:, None] * gradient, 0),)  # noqa: RUF005
        by_tap = grown

    row, column = pixels_of(tile, width, True, ROWS, WIDTH)
    mask = (row < height) & (column < width)
    if TERMS:
        k = tl.arange(0, TERMS)
        plane = ((n * splits + split) * 9 * INPUTS + k) * (height * width)
        used = (k < 9 * INPUTS)[:, None] & mask[None, :]
        tl.store(products + plane[:, None] + (row * width + column)[None, :], together, mask=used)
    pixel = tl.max_contiguous(row * width + column, 1)  # as the sums lie: wider stores would move them in the loop
    for tap in tl.static_range(0 if TERMS else 9 * INPUTS):
        plane = products + ((n * splits + split) * 9 * INPUTS + tap) * height * width
        tl.store(plane + pixel, by_tap[tap], mask=mask)


@triton.jit(do_not_specialize=SIZES)
def image_gradient(
    products,  # (N, splits, INPUTS, 3, 3, height, width)
    gradient,  # (N, INPUTS, image_height, image_width)
    height,
    width,
    image_height,
    image_width,
    padding,
    tiles,  # of PIXELS of an image
    splits,
    INPUTS: tl.constexpr,
    LAST: tl.constexpr,
    PIXELS: tl.constexpr,
):
    n, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // image_width, pixel % image_width
    for channel in range(INPUTS):
        total = tl.zeros((PIXELS,), products.dtype.element_ty)
        for split in range(splits):
            for tap in tl.static_range(9):
                row, column = y + (padding - tap // 3), x + (padding - tap % 3)
                seen = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                plane = products + (((n * splits + split) * INPUTS + channel) * 9 + tap) * height * width
                total += tl.load(plane + row * width + column, mask=seen & (y < image_height), other=0)
        cells = pixel * INPUTS + channel if LAST else channel * image_height * image_width + pixel
        cells = cells + n * INPUTS * image_height * image_width
        tl.store(gradient + cells, total.to(gradient.dtype.element_ty), mask=y < image_height)
