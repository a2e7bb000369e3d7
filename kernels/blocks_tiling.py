"""How the kernels of the blocks cut their work: by the shapes and the dtype, never by timing in a run.

A thread has so many elements of a tile that they stay in its registers; in float64 half as many.
"""

from typing import Any, NamedTuple

from .tiling import Chip, power_of_two

WIDEST = 256  # pixels of a row that a tile has at most
WARP = 32  # threads


class Cut(NamedTuple):
    """How many programs an image has, how many tiles a plane, and the options of their kernels."""

    programs: int
    tiles: int
    options: dict[str, Any]


def block_cut(channels: int, height: int, width: int, last: bool, double: bool) -> Cut:
    """For a map that is read: its planes whole if 8,192 elements hold them.

    NCHW has a warp for 1,024 elements, which then adds up a plane by itself, without a barrier. channels_last has eight
    channels or more side by side: 32 bytes are what memory gives at a time.
    """
    rows, columns, whole = _plane(height, width, 8192 // (8 if last else 1) // (1 + double))
    if not whole:
        rows = max((128 if last else 4096) // (1 + double) // columns, 2)
    usual = (4096 if last else 1024) // (1 + double)
    side = max(usual // (rows * columns), 8 if last else 1)
    return _cut(channels, height, width, side, rows, columns, (16 if last else 32) // (1 + double))


def conv_cut(channels: int, height: int, width: int, double: bool, backward: bool) -> Cut:
    """For a map that is convolved: a pixel of the images that is read serves all channels of a tile."""
    rows, columns, whole = _plane(height, width, 4096 // (1 + double))
    if not whole:
        rows = max(1024 // (1 + double) // columns, 2)
    plane = rows * columns * (1 + double)
    side = min(max(8192 // plane, 4), 16)
    each = 32 if backward or plane > 1024 else 64
    return _cut(channels, height, width, side, rows, columns, each // (1 + double))


def tap_cut(channels: int, height: int, width: int, itemsize: int) -> Cut:
    """For the gradient of images: one pixel of a thread, whose 36 sums are in its registers as well.

    Beside them there is room for eight channels of float32; four in float64, or of 16 bits, which are unpacked.
    """
    double, side = itemsize == 8, 8 if itemsize == 4 else 4
    rows, columns, whole = _plane(height, width, 512 // (1 + double))
    if not whole:
        rows = max(256 // columns, 2)
    return _cut(channels, height, width, side, rows, columns, side)


def splits_of(images: int, tiles: int, chip: Chip) -> int:
    """In how many parts the channels of an image's gradient are added up: in few, for each leaves 9·c planes."""
    return 1 if images * tiles >= chip.multiprocessors else 2


def _plane(height: int, width: int, most: int) -> tuple[int, int, bool]:
    """Rows and columns of a tile that holds a plane, two or more for the sake of pooling; whether `most` pixels do."""
    rows, columns = (max(power_of_two(extent), 2) for extent in (height, width))
    return rows, min(columns, WIDEST), rows * columns <= most and columns <= WIDEST


def _cut(channels: int, height: int, width: int, side: int, rows: int, columns: int, each: int) -> Cut:
    """`each` elements of a thread."""
    side = min(side, power_of_two(channels))
    tiles = -(-height // rows) * -(-width // columns)
    options = {
        "CHANNELS": side,
        "ROWS": rows,
        "WIDTH": columns,
        "FULL": channels % side == 0 and height % rows == 0 and width == columns,
        "WHOLE": tiles == 1,
        "num_warps": min(max(side * rows * columns // (WARP * each), 1), 16),
    }
    return Cut(-(-channels // side), tiles, options)
