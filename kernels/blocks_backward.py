"""The gradients of the blocks' norm, ReLU and pool, whose input is read or convolved again.

With d the upstream gradient of (x − m)·r·w + b, 0 where the ReLU is, and P pixels of a plane:

    dL/dx = r·w·(d − sum d / P − (x − m)·r²·sum d·(x − m) / P)      dL/dw = sum d·(x − m)·r      dL/db = sum d

Sums are over a plane for dL/dx, and over all images as well, in their order, for dL/dw and dL/db.
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
    load_channels,
    place_of,
    tile_of,
    windows_of,
)


@triton.jit
def upstream_of(
    grad, residual, centred, scale, shift, n, c, row, column, inside, shape,
    tile, RELU: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, FULL: tl.constexpr,
    TERMS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of d, 0 where the map ends."""
    channels, height, width, _, _, _, _ = shape
    if POOL and TERMS:  # a product has the four pixels of a window in one thread
        i, j = windows_of(tile, width, ROWS, WIDTH)
        h, w = height // 2, width // 2
        pooled = inside_of(c, i, j, channels, h, w, FULL)
        d = 0.25 * tl.load(grad + cells_of(n, c, i, j, channels, h, w, LAST), mask=pooled, other=0).to(centred.dtype)
        four = tl.broadcast_to(d[:, None, :, None], (d.shape[0], 2, d.shape[1], 2))
        d = tl.reshape(four, centred.shape)
    elif POOL:
        i, j, h, w = row // 2, column // 2, height // 2, width // 2
        pooled = inside
        if not FULL:  # an odd last row or column is in no window
            pooled = inside & ((i < h) & (j < w))[None, :]
        d = 0.25 * tl.load(grad + cells_of(n, c, i, j, channels, h, w, LAST), mask=pooled, other=0).to(centred.dtype)
    else:
        cells = cells_of(n, c, row, column, channels, height, width, LAST)
        d = tl.load(grad + cells, mask=inside, other=0).to(centred.dtype)
    if RELU:
        y = centred * scale[:, None] + shift[:, None]
        if residual is not None:
            cells = cells_of(n, c, row, column, channels, height, width, LAST)
            y += tl.load(residual + cells, mask=inside, other=0).to(y.dtype)
        d = tl.where(y <= 0, 0, d)
    return d


@triton.jit
def map_gradient(d, centred, scale, rstd, total, inner, count):
    """dL/dx of a tile, by d and its sums over the plane: `total` of d, `inner` of d·(x − m)·r."""
    pull = scale * rstd * inner / count
    return scale[:, None] * d - (scale * total / count)[:, None] - centred * pull[:, None]


@triton.jit
def write_gradients(
    d, centred, scale, rstd, total, inner, x_grad, residual_grad, n, c, row, column, inside, shape, LAST: tl.constexpr
):
    channels, height, width, _, _, _, _ = shape
    cells = cells_of(n, c, row, column, channels, height, width, LAST)
    gradient = map_gradient(d, centred, scale, rstd, total, inner, tl.full((), 1, d.dtype) * (height * width))
    tl.store(x_grad + cells, gradient.to(x_grad.dtype.element_ty), mask=inside)
    if residual_grad is not None:
        tl.store(residual_grad + cells, d.to(residual_grad.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def block_backward(
    grad,  # like the output of `block_forward`, of which all others are arguments
    source,
    taps,
    weight,
    bias,
    residual,
    means,  # (N, channels), as `rstds`
    rstds,
    x_grad,  # like the map, as `residual_grad`; each is None if nobody asked for it
    residual_grad,
    sums,  # (2, N, channels): those of d·(x − m)·r and of d over each plane, or None
    images,  # N
    channels,
    height,
    width,
    inputs,
    image_height,
    image_width,
    padding,
    tiles,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    LAST: tl.constexpr,
    DOUBLE: tl.constexpr,
    FULL: tl.constexpr,
    WHOLE: tl.constexpr,
    TERMS: tl.constexpr,
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
    mean = load_channels(means + n * channels, c, channels, dtype)
    rstd = load_channels(rstds + n * channels, c, channels, dtype)
    factors = factors_of(source, taps, n, c, channels, inputs, image_height, image_width, LAST, TERMS, PRECISION)
    if TERMS:
        mean -= lacking(*factors, c, PRECISION)
    scale *= rstd

    if WHOLE:
        row, column, inside, x = tile_of(
            source, taps, factors, n, c, 0, shape, dtype, POOL, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
        )
        centred = x - mean[:, None]
        d = upstream_of(
            grad,
            residual,
            centred,
            scale,
            shift,
            n,
            c,
            row,
            column,
            inside,
            shape,
            0,
            RELU,
            POOL,
            LAST,
            FULL,
            TERMS,
            ROWS,
            WIDTH,
        )
        total, inner = tl.sum(d, 1), tl.sum(d * centred, 1) * rstd
    else:
        total, inner = tl.zeros((CHANNELS,), dtype), tl.zeros((CHANNELS,), dtype)
        for tile in range(tiles):
            row, column, inside, x = tile_of(
                source, taps, factors, n, c, tile, shape, dtype, POOL, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
            )
            centred = x - mean[:, None]
            d = upstream_of(
                grad,
                residual,
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
                RELU,
                POOL,
                LAST,
                FULL,
                TERMS,
                ROWS,
                WIDTH,
            )
            total += tl.sum(d, 1)
            inner += tl.sum(d * centred, 1) * rstd
    if sums is not None:
        tl.store(sums + n * channels + c, inner, mask=c < channels)
        tl.store(sums + (images + n) * channels + c, total, mask=c < channels)

    if x_grad is not None:
        if WHOLE:
            write_gradients(
                d, centred, scale, rstd, total, inner, x_grad, residual_grad, n, c, row, column, inside, shape, LAST
            )
        else:
            for tile in range(tiles):
                row, column, inside, x = tile_of(
                    source, taps, factors, n, c, tile, shape, dtype, POOL, LAST, FULL, TERMS, PRECISION, ROWS, WIDTH
                )
                centred = x - mean[:, None]
                d = upstream_of(
                    grad,
                    residual,
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
                    RELU,
                    POOL,
                    LAST,
                    FULL,
                    TERMS,
                    ROWS,
                    WIDTH,
                )
                write_gradients(
                    d, centred, scale, rstd, total, inner, x_grad, residual_grad, n, c, row, column, inside, shape, LAST
                )


@triton.jit(do_not_specialize=["images"])
def affine_gradient(
    sums,  # (2, N, channels)
    weight_grad,  # (channels,), as `bias_grad`
    bias_grad,
    images,  # N
    channels,
    IMAGES: tl.constexpr,  # of a step
    CHANNELS: tl.constexpr,
):
    dtype: tl.constexpr = sums.dtype.element_ty
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    weighted, plain = tl.zeros((IMAGES, CHANNELS), dtype), tl.zeros((IMAGES, CHANNELS), dtype)
    for begin in range(0, images, IMAGES):
        n = begin + tl.arange(0, IMAGES)
        mask = (n < images)[:, None] & (c < channels)[None, :]
        cells = n.to(tl.int64)[:, None] * channels + c[None, :]
        weighted += tl.load(sums + cells, mask=mask, other=0)
        plain += tl.load(sums + images.to(tl.int64) * channels + cells, mask=mask, other=0)
    tl.store(weight_grad + c, tl.sum(weighted, 0).to(weight_grad.dtype.element_ty), mask=c < channels)
    tl.store(bias_grad + c, tl.sum(plain, 0).to(bias_grad.dtype.element_ty), mask=c < channels)
