"""An affine map of each group of images, as `augment` and the transpose of its linear part.

Row g of the table says what happens to the images of group g: an operation, four parameters, and an offset for COLOR.

    COLOR   gain·x + a·(mean over C) + b·(mean over C, H, W) + offset          gain, a, b
    SHIFT   x at (row + down, column + right), 0 outside                       down, right
    CUT     0 in a rectangle, x elsewhere                                      first and end row, first and end column
    MIRROR  x with left and right exchanged
    SAMPLE  x bilinearly at M·(column, row) about the centre, 0 outside        M by rows, in pixels

A program makes PIXELS pixels of one image in all channels, CHANNELS at a time, and takes one way through the kernel.
The transpose of a sample is gathered too: the pixels that sampled a pixel are found by the inverse of M, and what they
hold is added up in a fixed order. Positions are float64, of which there is one for all channels.
"""

import triton
import triton.language as tl

COLOR, SHIFT, CUT, MIRROR, SAMPLE = (tl.constexpr(code) for code in range(5))
TABLE = tl.constexpr(6)


@triton.jit
def cells_of(rows, columns, channels, strides):
    """(CHANNELS, PIXELS)"""
    return (
        channels[:, None] * strides[0] + (rows.to(tl.int64) * strides[1] + columns.to(tl.int64) * strides[2])[None, :]
    )


@triton.jit
def inside_of(rows, columns, height, width):
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


@triton.jit
def channels_of(begin, channels, CHANNELS: tl.constexpr):
    """The next channels, as int64 for the sake of their stride, and which of them exist."""
    c = begin + tl.arange(0, CHANNELS)
    return c.to(tl.int64), c < channels


@triton.jit
def parameters_of(table):
    return tl.load(table + 1), tl.load(table + 2), tl.load(table + 3), tl.load(table + 4)


@triton.jit
def mean_of(image, strides, channels, height, width, dtype: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """The mean of the whole image, by every program alike."""
    total = tl.zeros((CHANNELS, PIXELS), dtype)
    for begin in range(0, height * width, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        for first in range(0, channels, CHANNELS):
            c, exist = channels_of(first, channels, CHANNELS)
            mask = exist[:, None] & (p < height * width)[None, :]
            total += tl.load(image + cells_of(p // width, p % width, c, strides), mask=mask, other=0)
    return tl.sum(total) / (channels * height * width)


@triton.jit
def recolored(
    image, out, strides, out_strides, table, i, j, channels, height, width,
    TRANSPOSE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = i.shape[0]
    dtype: tl.constexpr = image.dtype.element_ty
    gain, pixel, whole, _ = parameters_of(table)
    mean = mean_of(image, strides, channels, height, width, dtype, CHANNELS, PIXELS)
    shift = whole.to(dtype) * mean
    if not TRANSPOSE:
        shift += tl.load(table + 5).to(dtype)
    here = inside_of(i, j, height, width)
    total = tl.zeros((PIXELS,), dtype)
    for first in range(0, channels, CHANNELS):
        c, exist = channels_of(first, channels, CHANNELS)
        mask = exist[:, None] & here[None, :]
        total += tl.sum(tl.load(image + cells_of(i, j, c, strides), mask=mask, other=0), 0)
    shift += pixel.to(dtype) * (total / channels)
    for first in range(0, channels, CHANNELS):
        c, exist = channels_of(first, channels, CHANNELS)
        mask = exist[:, None] & here[None, :]
        x = tl.load(image + cells_of(i, j, c, strides), mask=mask, other=0)
        tl.store(out + cells_of(i, j, c, out_strides), gain.to(dtype) * x + shift[None, :], mask=mask)


@triton.jit
def moved(
    image, out, strides, out_strides, table, operation, i, j, channels, height, width,
    TRANSPOSE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Every pixel is another one, or 0."""
    a, b, c, d = parameters_of(table)
    rows, columns = i, j
    wanted = inside_of(i, j, height, width)
    here = wanted
    if operation == SHIFT:
        down, right = a.to(tl.int32), b.to(tl.int32)
        rows = i - down if TRANSPOSE else i + down
        columns = j - right if TRANSPOSE else j + right
        wanted = inside_of(rows, columns, height, width)
    elif operation == CUT:
        wanted = (i < a) | (i >= b) | (j < c) | (j >= d)
    else:
        columns = width - 1 - j
    for first in range(0, channels, CHANNELS):
        channel, exist = channels_of(first, channels, CHANNELS)
        mask = exist[:, None] & here[None, :]
        x = tl.load(image + cells_of(rows, columns, channel, strides), mask=mask & wanted[None, :], other=0)
        tl.store(out + cells_of(i, j, channel, out_strides), x, mask=mask)


@triton.jit
def sampled(
    image, out, strides, out_strides, table, i, j, channels, height, width, CHANNELS: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = i.shape[0]
    dtype: tl.constexpr = image.dtype.element_ty
    a, b, c, d = parameters_of(table)
    middle, centre = (width - 1) / 2, (height - 1) / 2
    x = a * (j - middle) + b * (i - centre) + middle
    y = c * (j - middle) + d * (i - centre) + centre
    left, upper = tl.floor(x), tl.floor(y)
    here = inside_of(i, j, height, width)
    for first in range(0, channels, CHANNELS):
        channel, exist = channels_of(first, channels, CHANNELS)
        total = tl.zeros((CHANNELS, PIXELS), dtype)
        for corner in tl.static_range(4):
            column, row = left + corner % 2, upper + corner // 2
            weight = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
            mask = exist[:, None] & (here & inside_of(row, column, height, width))[None, :]
            cells = cells_of(row.to(tl.int32), column.to(tl.int32), channel, strides)
            total += weight.to(dtype)[None, :] * tl.load(image + cells, mask=mask, other=0)
        tl.store(out + cells_of(i, j, channel, out_strides), total, mask=exist[:, None] & here[None, :])


@triton.jit
def spread(
    grad, out, strides, out_strides, table, i, j, channels, height, width, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What each pixel gave to the samples less than a pixel away from it: they lie in a small box about M⁻¹."""
    PIXELS: tl.constexpr = i.shape[0]
    dtype: tl.constexpr = grad.dtype.element_ty
    a, b, c, d = parameters_of(table)
    middle, centre = (width - 1) / 2, (height - 1) / 2
    determinant = a * d - b * c
    reach_x = (tl.abs(d) + tl.abs(b)) / tl.abs(determinant)
    reach_y = (tl.abs(c) + tl.abs(a)) / tl.abs(determinant)
    x, y = j - middle, i - centre
    leftmost = (tl.floor((d * x - b * y) / determinant + middle - reach_x) + 1).to(tl.int32)
    uppermost = (tl.floor((a * y - c * x) / determinant + centre - reach_y) + 1).to(tl.int32)
    across, along = tl.floor(2 * reach_x).to(tl.int32) + 1, tl.floor(2 * reach_y).to(tl.int32) + 1
    here = inside_of(i, j, height, width)
    for first in range(0, channels, CHANNELS):
        channel, exist = channels_of(first, channels, CHANNELS)
        total = tl.zeros((CHANNELS, PIXELS), dtype)
        for step in range(across * along):
            row, column = uppermost + step // across, leftmost + step % across
            far_x = tl.abs(a * (column - middle) + b * (row - centre) - x)
            far_y = tl.abs(c * (column - middle) + d * (row - centre) - y)
            near = here & inside_of(row, column, height, width) & (far_x < 1) & (far_y < 1)
            weight = tl.where(near, (1 - far_x) * (1 - far_y), 0).to(dtype)
            mask = exist[:, None] & near[None, :]
            total += weight[None, :] * tl.load(grad + cells_of(row, column, channel, strides), mask=mask, other=0)
        tl.store(out + cells_of(i, j, channel, out_strides), total, mask=exist[:, None] & here[None, :])


@triton.jit(do_not_specialize=["per_group"])
def augment_kernel(
    images,  # (G, n, C, H, W)
    table,  # (G, TABLE) float64
    out,  # (G, n, C, H, W), contiguous
    per_group,  # n
    channels,
    height,
    width,
    group_stride,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    TRANSPOSE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    group = number // per_group
    table += group * TABLE
    image = images + group * group_stride + number % per_group * image_stride
    strides = (channel_stride, row_stride, column_stride)
    out += number * channels * height * width
    out_strides = (height * width, width, 1)
    p = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    i, j = p // width, p % width

    operation = tl.load(table).to(tl.int32)
    if operation == COLOR:
        recolored(image, out, strides, out_strides, table, i, j, channels, height, width, TRANSPOSE, CHANNELS)
    elif operation == SAMPLE:
        if TRANSPOSE:
            spread(image, out, strides, out_strides, table, i, j, channels, height, width, CHANNELS)
        else:
            sampled(image, out, strides, out_strides, table, i, j, channels, height, width, CHANNELS)
    else:
        moved(image, out, strides, out_strides, table, operation, i, j, channels, height, width, TRANSPOSE, CHANNELS)
