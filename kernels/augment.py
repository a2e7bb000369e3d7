"""An affine map of each group of images, as `augment` and the transpose of its linear part.

Row g of the table says what happens to the images of group g: an operation, four parameters, and an offset for COLOR.

    COLOR   gain·x + a·(mean over C) + b·(mean over C, H, W) + offset          gain, a, b
    SHIFT   x at (row + down, column + right), 0 outside                       down, right
    CUT     0 in a rectangle, x elsewhere                                      first and end row, first and end column
    MIRROR  x with left and right exchanged
    SAMPLE  x bilinearly at M·(column, row) about the centre, 0 outside        M by rows, in pixels

A program makes PIXELS pixels of one image, one channel after the other, and takes one way through the kernel: the
addresses and values of all channels at once are more than the registers of a thread hold.
The transpose of a sample is gathered too: the pixels that sampled a pixel are found by the inverse of M, and what they
hold is added up in a fixed order. Positions are float64, of which there is one for all channels.
"""

import triton
import triton.language as tl

COLOR, SHIFT, CUT, MIRROR, SAMPLE = (tl.constexpr(code) for code in range(5))
TABLE = tl.constexpr(6)
TOGETHER = tl.constexpr(4)  # channels that share the weights of a transposed sample


@triton.jit
def cells_of(rows, columns, strides):
    """Where pixels lie in a channel, in int64 for the sake of the strides: (PIXELS,)."""
    return rows.to(tl.int64) * strides[1] + columns.to(tl.int64) * strides[2]


@triton.jit
def channel_of(image, channel, strides):
    """The address of a channel of an image."""
    return image + tl.full((), channel, tl.int64) * strides[0]


@triton.jit
def inside_of(rows, columns, height, width):
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


@triton.jit
def parameters_of(table):
    return tl.load(table + 1), tl.load(table + 2), tl.load(table + 3), tl.load(table + 4)


@triton.jit
def mean_of(image, strides, channels, height, width, PIXELS: tl.constexpr):
    """The mean of the whole image, which all of its programs calculate alike."""
    total = tl.zeros((PIXELS,), image.dtype.element_ty)
    for begin in range(0, height * width, PIXELS):
        p = begin + tl.arange(0, PIXELS)
        cells = cells_of(p // width, p % width, strides)
        for channel in range(channels):
            total += tl.load(channel_of(image, channel, strides) + cells, mask=p < height * width, other=0)
    return tl.sum(total) / (channels * height * width)


@triton.jit
def recolored(
    image, out, strides, out_strides, table, sharers, channels, height, width,
    TRANSPOSE: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The first `sharers` programs of the image make all of its pixels: each of them reads the whole for its mean."""
    dtype: tl.constexpr = image.dtype.element_ty
    gain, pixel, whole, _ = parameters_of(table)
    shift = whole.to(dtype) * mean_of(image, strides, channels, height, width, PIXELS)
    if not TRANSPOSE:
        shift += tl.load(table + 5).to(dtype)
    for begin in range(tl.program_id(1) * PIXELS, height * width, sharers * PIXELS):
        p = begin + tl.arange(0, PIXELS)
        here = p < height * width
        cells, to = cells_of(p // width, p % width, strides), cells_of(p // width, p % width, out_strides)
        total = tl.zeros((PIXELS,), dtype)
        for channel in range(channels):
            total += tl.load(channel_of(image, channel, strides) + cells, mask=here, other=0)
        added = shift + pixel.to(dtype) * (total / channels)
        for channel in range(channels):
            x = tl.load(channel_of(image, channel, strides) + cells, mask=here, other=0)
            tl.store(channel_of(out, channel, out_strides) + to, gain.to(dtype) * x + added, mask=here)


@triton.jit
def moved(
    image, out, strides, out_strides, table, operation, i, j, channels, height, width, TRANSPOSE: tl.constexpr
):  # fmt: skip
    """Every pixel is another one, or 0."""
    a, b, c, d = parameters_of(table)
    rows, columns = i, j
    here = inside_of(i, j, height, width)
    wanted = here
    if operation == SHIFT:
        down, right = a.to(tl.int32), b.to(tl.int32)
        rows = i - down if TRANSPOSE else i + down
        columns = j - right if TRANSPOSE else j + right
        wanted = inside_of(rows, columns, height, width)
    elif operation == CUT:
        wanted = (i < a) | (i >= b) | (j < c) | (j >= d)
    else:
        columns = width - 1 - j
    cells = cells_of(rows, columns, strides)
    for channel in range(channels):
        x = tl.load(channel_of(image, channel, strides) + cells, mask=here & wanted, other=0)
        tl.store(channel_of(out, channel, out_strides) + cells_of(i, j, out_strides), x, mask=here)


@triton.jit
def sampled(image, out, strides, out_strides, table, i, j, channels, height, width):
    dtype: tl.constexpr = image.dtype.element_ty
    a, b, c, d = parameters_of(table)
    middle, centre = (width - 1) / 2, (height - 1) / 2
    x = a * (j - middle) + b * (i - centre) + middle
    y = c * (j - middle) + d * (i - centre) + centre
    left, upper = tl.floor(x), tl.floor(y)
    here = inside_of(i, j, height, width)
    for channel in range(channels):
        total = tl.zeros(i.shape, dtype)
        for corner in tl.static_range(4):
            column, row = left + corner % 2, upper + corner // 2
            weight = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
            mask = here & inside_of(row, column, height, width)
            cells = cells_of(row.to(tl.int32), column.to(tl.int32), strides)
            total += weight.to(dtype) * tl.load(channel_of(image, channel, strides) + cells, mask=mask, other=0)
        tl.store(channel_of(out, channel, out_strides) + cells_of(i, j, out_strides), total, mask=here)


@triton.jit
def spread(grad, out, strides, out_strides, table, i, j, channels, height, width):
    """What each pixel gave to the samples less than a pixel away from it: they lie in a small box about M⁻¹."""
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
    for first in range(0, channels, TOGETHER):
        channel = first + tl.arange(0, TOGETHER)[:, None].to(tl.int64)
        total = tl.zeros((TOGETHER, i.shape[0]), dtype)
        for step in range(across * along):
            row, column = uppermost + step // across, leftmost + step % across
            far_x = tl.abs(a * (column - middle) + b * (row - centre) - x)
            far_y = tl.abs(c * (column - middle) + d * (row - centre) - y)
            near = here & inside_of(row, column, height, width) & (far_x < 1) & (far_y < 1)
            weight = tl.where(near, (1 - far_x) * (1 - far_y), 0).to(dtype)
            cells = channel * strides[0] + cells_of(row, column, strides)[None, :]
            total += weight[None, :] * tl.load(grad + cells, mask=(channel < channels) & near[None, :], other=0)
        cells = channel * out_strides[0] + cells_of(i, j, out_strides)[None, :]
        tl.store(out + cells, total, mask=(channel < channels) & here[None, :])


@triton.jit(do_not_specialize=["per_group", "sharers"])
def augment_kernel(
    images,  # (G, n, C, H, W)
    table,  # (G, TABLE) float64
    out,  # (G, n, C, H, W), contiguous
    per_group,  # n
    sharers,  # programs of an image that recolor it
    channels,
    height,
    width,
    group_stride,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    TRANSPOSE: tl.constexpr,
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
        if tl.program_id(1) < sharers:
            recolored(image, out, strides, out_strides, table, sharers, channels, height, width, TRANSPOSE, PIXELS)
    elif operation == SAMPLE:
        if TRANSPOSE:
            spread(image, out, strides, out_strides, table, i, j, channels, height, width)
        else:
            sampled(image, out, strides, out_strides, table, i, j, channels, height, width)
    else:
        moved(image, out, strides, out_strides, table, operation, i, j, channels, height, width, TRANSPOSE)
