"""Instance norm, residual, ReLU and 2x2 average pool: of a map, or of a convolution that is never written.

A program has CHANNELS channels of an image. Where their planes fit into registers (WHOLE), the map is read or convolved
once; else tile by tile, once for the statistics and once for the output. Statistics are centred: each tile about its
own mean, and tiles are merged by Chan's formula.
"""

import triton
import triton.language as tl

from .block_tiles import (
    SIZES,
    affine_of,
    cells_of,
    extent_of,
    factors_of,
    inside_of,
    lacking,
    pixels_in,
    place_of,
    tile_of,
    windows_of,
)


@triton.jit
def moments_of(x, inside, count):
    """The mean (CHANNELS,) of a tile, what rounding took off it, and the sum of squares about it."""
    mean = tl.sum(x, 1) / count
    centred = tl.where(inside, x - mean[:, None], 0)
    drift = tl.sum(centred, 1) / count
    return mean, drift, tl.sum(centred * centred, 1) - count * drift * drift


@triton.jit
def merged(mean, drift, squares, count, tile_mean, tile_drift, tile_squares, tile_count):
    """The moments of both tiles and how many pixels they have; the second is not empty."""
    total = count + tile_count
    gap = (tile_mean - mean) + (tile_drift - drift)
    step = drift + gap * (tile_count / total)
    moved = mean + step
    return moved, step - (moved - mean), squares + tile_squares + gap * gap * (count * tile_count / total), total


@triton.jit
def write_tile(
    centred, scale, shift, residual, out, n, c, tile, row, column, inside, shape,
    RELU: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, FULL: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What comes out of a tile: centred·scale + shift, and all that follows it."""
    channels, height, width, _, _, _, _ = shape
    cells = cells_of(n, c, row, column, channels, height, width, LAST)
    y = centred * scale[:, None] + shift[:, None]
    if residual is not None:
        y += tl.load(residual + cells, mask=inside, other=0).to(y.dtype)
    if RELU:
        y = tl.maximum(y, 0, propagate_nan=tl.PropagateNan.ALL)
    if POOL:
        y = tl.reshape(y, (y.shape[0], 2, y.shape[1] // 4, 2))
        y = tl.sum(tl.sum(y, 1), 2) * 0.25
        row, column = windows_of(tile, width, ROWS, WIDTH)
        inside = inside_of(c, row, column, channels, height // 2, width // 2, FULL)
        cells = cells_of(n, c, row, column, channels, height // 2, width // 2, LAST)
    tl.store(out + cells, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def block_forward(
    source,  # the map (N, channels, height, width) or, with taps, images (N, inputs, image_height, image_width)
    taps,  # (inputs, 3, 3, channels) or, where TERMS, (channels, inputs, 3, 3); or None
    weight,  # (channels,), as `bias`, or None
    bias,
    residual,  # like the map, or None
    out,  # like the map or, where POOL, (N, channels, height // 2, width // 2)
    means,  # (N, channels), as `rstds`, written where KEEP
    rstds,
    channels,
    height,
    width,
    inputs,
    image_height,
    image_width,
    padding,
    tiles,
    eps: tl.float64,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    KEEP: tl.constexpr,  # whether there will be a backward
    LAST: tl.constexpr,
    DOUBLE: tl.constexpr,  # whether to calculate in float64
    FULL: tl.constexpr,  # whether all elements of a tile exist, and the map is WIDTH wide
    WHOLE: tl.constexpr,  # whether there is one tile
    TERMS: tl.constexpr,  # of a convolution that is a product, else 0
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    n, c = place_of(tl.program_id(0), channels, CHANNELS)
    height, width = extent_of(height, width, FULL, WHOLE, ROWS, WIDTH)
    shape = (channels, height, width, inputs, image_height, image_width, padding)
    scale, shift = affine_of(weight, bias, c, channels, dtype)
    factors = factors_of(source, taps, n, c, channels, inputs, image_height, image_width, LAST, TERMS, PRECISION)

    if WHOLE:
        row, column, inside, x = tile_of(
            source, taps, factors, n, c, 0, shape, dtype, POOL, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
        )
        count = pixels_in(0, height, width, dtype, ROWS, WIDTH)
        mean, drift, squares = moments_of(x, inside, count)
    else:
        mean, drift, squares = tl.zeros((CHANNELS,), dtype), tl.zeros((CHANNELS,), dtype), tl.zeros((CHANNELS,), dtype)
        count = tl.full((), 0, dtype)
        for tile in range(tiles):
            _, _, inside, x = tile_of(
                source, taps, factors, n, c, tile, shape, dtype, POOL, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
            )
            met = pixels_in(tile, height, width, dtype, ROWS, WIDTH)
            mean, drift, squares, count = merged(mean, drift, squares, count, *moments_of(x, inside, met), met)

    rstd = tl.rsqrt(squares / count + tl.full((), eps, dtype))
    if KEEP:
        whole = mean + drift
        if TERMS:
            whole += lacking(*factors, c, PRECISION)
        tl.store(means + n * channels + c, whole, mask=c < channels)
        tl.store(rstds + n * channels + c, rstd, mask=c < channels)
    scale *= rstd
    shift -= drift * scale

    if WHOLE:
        write_tile(
            x - mean[:, None], scale, shift, residual, out, n, c, 0, row, column, inside, shape,
            RELU, POOL, LAST, FULL, ROWS, WIDTH,
        )  # fmt: skip
    else:
        for tile in range(tiles):
            row, column, inside, x = tile_of(
                source, taps, factors, n, c, tile, shape, dtype, POOL, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
            )
            write_tile(
                x - mean[:, None], scale, shift, residual, out, n, c, tile, row, column, inside, shape,
                RELU, POOL, LAST, FULL, ROWS, WIDTH,
            )  # fmt: skip
