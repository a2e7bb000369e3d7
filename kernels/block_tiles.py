"""What the kernels of the blocks share: a tile, CHANNELS x PIXELS of one image's map, which is read or convolved.

A convolution is added up tap by tap (TERMS = 0), or it is one tensor-core product of the kernel (CHANNELS, TERMS) and
the patches (TERMS, PIXELS), where TERMS is 9·inputs, padded with zeros to a power of two. PRECISION is of its factors:
"half", the 16-bit values as they are; "tf32"; or "float32", which multiplies the tf32 halves of both factors.

The PIXELS are ROWS x WIDTH of the map. Where they are pooled, the upper rows of all windows come before the lower ones:
so far apart, the two are in registers of one thread, and their sum needs no other. Tensors are dense, in either memory
format: LAST says whether it is channels_last.
"""

import triton
import triton.language as tl

from .moments import round_to_tf32

SIZES = ["inputs", "padding", "tiles", "splits"]  # no kernel for each value; of the others 16 is a known divisor


@triton.jit
def place_of(program, channels, CHANNELS: tl.constexpr):
    """A program's image and its block of channels (CHANNELS,), both int64."""
    blocks = tl.cdiv(channels, CHANNELS)
    return (program // blocks).to(tl.int64), ((program % blocks) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)


@triton.jit
def extent_of(height, width, FULL: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The size of the map, as constants where the tile tells."""
    if FULL and WHOLE:
        return ROWS, WIDTH
    elif FULL:  # noqa: RET505  Triton compiles what follows a return
        return height, WIDTH
    else:
        return height, width


@triton.jit
def pixels_of(tile, width, POOL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows and columns (PIXELS,) of a tile's pixels."""
    pixel = tl.arange(0, ROWS * WIDTH)
    row, column = pixel // WIDTH, pixel % WIDTH
    if POOL:
        HALF: tl.constexpr = ROWS // 2
        row = 2 * (row % HALF) + row // HALF
    across = tl.cdiv(width, WIDTH)
    return (tile // across) * ROWS + row, (tile % across) * WIDTH + column


@triton.jit
def windows_of(tile, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows and columns of the windows that a tile's pixels are pooled to."""
    HALF: tl.constexpr = WIDTH // 2
    window = tl.arange(0, ROWS // 2 * HALF)
    across = tl.cdiv(width, WIDTH)
    return (tile // across) * (ROWS // 2) + window // HALF, (tile % across) * HALF + window % HALF


@triton.jit
def inside_of(c, row, column, channels, height, width, FULL: tl.constexpr):
    """Which elements of a tile exist; FULL folds that to a constant."""
    if FULL:
        return tl.full((c.shape[0], row.shape[0]), True, tl.int1)
    else:  # noqa: RET505
        return (c < channels)[:, None] & ((row < height) & (column < width))[None, :]


@triton.jit
def cells_of(n, c, row, column, channels, height, width, LAST: tl.constexpr):
    """Where the elements of a tile lie in (N, channels, height, width)."""
    pixel = (row * width + column).to(tl.int64)[None, :]
    image = n * channels * height * width
    if LAST:
        return image + pixel * channels + c[:, None]
    else:  # noqa: RET505
        return image + c[:, None] * (height * width) + pixel


@triton.jit
def affine_of(weight, bias, c, channels, DTYPE: tl.constexpr):
    """The weights and biases of channels; 1 and 0 where there are none."""
    if weight is None:
        return tl.full(c.shape, 1, DTYPE), tl.full(c.shape, 0, DTYPE)
    else:  # noqa: RET505
        return load_channels(weight, c, channels, DTYPE), load_channels(bias, c, channels, DTYPE)


@triton.jit
def load_channels(vector, c, channels, DTYPE: tl.constexpr):
    return tl.load(vector + c, mask=c < channels, other=0).to(DTYPE)


@triton.jit
def convolved(
    images, taps, n, c, row, column, channels, inputs, image_height, image_width, padding,
    DTYPE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """The 3x3 convolution of zero-padded images (N, inputs, image_height, image_width), of taps (inputs, 3, 3, C).

    `inputs` is no constant, and only three taps are unrolled: values of all would take too many registers.
    """
    total = tl.zeros((c.shape[0], row.shape[0]), DTYPE)
    for line in range(3 * inputs):
        channel, y = line // 3, row + (line % 3 - padding)
        for tap in tl.static_range(3):
            x = column + (tap - padding)
            seen = (y >= 0) & (y < image_height) & (x >= 0) & (x < image_width)
            pixel = (y * image_width + x).to(tl.int64)
            if LAST:
                pixel = pixel * inputs + channel
            else:
                pixel += channel * image_height * image_width
            value = tl.load(images + n * inputs * image_height * image_width + pixel, mask=seen, other=0).to(DTYPE)
            factor = load_channels(taps + (3 * line + tap) * channels, c, channels, DTYPE)
            total += factor[:, None] * value[None, :]
    return total


@triton.jit
def factors_of(
    images, taps, n, c, channels, inputs, image_height, image_width,
    LAST: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a map is convolved by: the kernel (CHANNELS, TERMS) and a pivot (TERMS,), the first pixel of each input.

    Without a product that is `taps`, and this is nothing. Patches of float32 are taken about the pivot, since a tensor
    core's error is relative to the sum and not to its spread; the map then lacks a constant of each channel, which the
    norm takes off.
    """
    if TERMS:
        k = tl.arange(0, TERMS)
        used = k < 9 * inputs
        at = c[:, None] * (9 * inputs) + k[None, :]
        matrix = tl.load(taps + at, mask=(c < channels)[:, None] & used[None, :], other=0)
        pivot = tl.zeros((TERMS,), tl.float32)
        if PRECISION == "float32":
            size = image_height * image_width
            first = n * inputs * size + k // 9 * (1 if LAST else size)
            pivot = tl.load(images + first, mask=used, other=0).to(tl.float32)
        if PRECISION != "half":
            matrix = matrix.to(tl.float32)
        return matrix, pivot
    else:  # noqa: RET505  nobody reads it, and no function of Triton 3.6 may return None
        return images, images


@triton.jit
def lacking(matrix, pivot, c, PRECISION: tl.constexpr):
    """The constant of each channel (CHANNELS,) that the pivot takes off the map."""
    if PRECISION == "float32":
        return tl.sum(matrix * pivot[None, :], 1)
    else:  # noqa: RET505
        return tl.zeros(c.shape, tl.float32)


@triton.jit
def patches_of(
    images, pivot, n, row, column, inputs, image_height, image_width, padding,
    LAST: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The 3x3 patches (TERMS, PIXELS) of zero-padded images, less the pivot."""
    k = tl.arange(0, TERMS)
    channel, down, right = k // 9, k % 9 // 3 - padding, k % 3 - padding
    y = (row[None, :] + down[:, None]).to(tl.uint32, bitcast=True)  # what is negative becomes too large
    x = (column[None, :] + right[:, None]).to(tl.uint32, bitcast=True)
    seen = (k < 9 * inputs)[:, None] & (y < image_height) & (x < image_width)
    if LAST:
        at = ((down * image_width + right) * inputs + channel)[:, None]
        at += (row * image_width + column)[None, :] * inputs
    else:
        at = (channel * image_height * image_width + down * image_width + right)[:, None]
        at += (row * image_width + column)[None, :]
    value = tl.load(images + n * inputs * image_height * image_width + at, mask=seen, other=0)
    if PRECISION != "half":
        value = value.to(tl.float32)
    if PRECISION == "float32":
        value -= pivot[:, None]
    return value


@triton.jit
def multiplied(left, right, PRECISION: tl.constexpr):
    """left·right. Small products come first: what a tensor core adds up, it truncates by the size of the sum."""
    if PRECISION == "half":
        return tl.dot(left, right)
    elif PRECISION == "tf32":  # noqa: RET505
        return tl.dot(round_to_tf32(left), round_to_tf32(right), input_precision="tf32")
    else:
        large, other = round_to_tf32(left), round_to_tf32(right)
        total = tl.dot(round_to_tf32(left - large), other, input_precision="tf32")
        total = tl.dot(large, round_to_tf32(right - other), total, input_precision="tf32")
        return tl.dot(large, other, total, input_precision="tf32")


@triton.jit
def tile_of(
    source, taps, factors, n, c, tile, shape,
    DTYPE: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, FULL: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of the map: rows, columns, which elements exist, and their values, 0 for others.

    They are read from `source` or, with `taps`, convolved from the images there: by `factors` where it is a product.
    """
    channels, height, width, inputs, image_height, image_width, padding = shape
    matrix, pivot = factors
    row, column = pixels_of(tile, width, POOL, ROWS, WIDTH)
    inside = inside_of(c, row, column, channels, height, width, FULL)
    if TERMS:
        patches = patches_of(
            source, pivot, n, row, column, inputs, image_height, image_width, padding, LAST, TERMS, PRECISION
        )
        return row, column, inside, tl.where(inside, multiplied(matrix, patches, PRECISION), 0)
    elif taps is None:  # noqa: RET505
        cells = cells_of(n, c, row, column, channels, height, width, LAST)
        return row, column, inside, tl.load(source + cells, mask=inside, other=0).to(DTYPE)
    else:
        x = convolved(
            source, taps, n, c, row, column, channels, inputs, image_height, image_width, padding, DTYPE, LAST
        )
        return row, column, inside, tl.where(inside, x, 0)


@triton.jit
def pixels_in(tile, height, width, DTYPE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """How many pixels of the map lie in a tile."""
    across = tl.cdiv(width, WIDTH)
    rows, columns = height - tile // across * ROWS, width - tile % across * WIDTH
    return tl.full((), 1, DTYPE) * (tl.minimum(rows, ROWS) * tl.minimum(columns, WIDTH))
