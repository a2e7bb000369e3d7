"""How the kernels of the blocks cut their work: by the shapes, the dtype and the chip, never by timing in a run."""

from typing import Any, NamedTuple

from .tiling import Chip, power_of_two

WIDEST = 256  # pixels of a row that a tile has at most
USUAL = 4096  # elements of a tile, as many as make blocks of which a multiprocessor holds several
MOST = 16384  # ... of one that holds a plane


class Cut(NamedTuple):
    """How many programs an image has, how many tiles a plane, and the options of their kernels."""

    programs: int
    tiles: int
    options: dict[str, Any]


def block_cut(channels: int, height: int, width: int, last: bool, itemsize: int, backward: bool) -> Cut:
    """For a map of which planes fit into a tile, if 16384 elements do; of channels_last, with channels enough side by
    side that they fill a sector of memory."""
    most, usual = (MOST // 2, USUAL // 2) if itemsize == 8 else (MOST, USUAL)
    together = min(power_of_two(channels), max(64 // itemsize, 8) if last else 1)
    columns = min(max(power_of_two(width), 2), WIDEST)
    plane = columns * max(power_of_two(height), 2)
    whole = width <= columns and plane * together <= most
    rows = plane // columns if whole else max(usual // (columns * together), 2)
    side = min(power_of_two(channels), max(usual // (rows * columns), together))
    return _cut(channels, height, width, side, rows, columns, (16 if backward else 32) // (1 + (itemsize == 8)))


def conv_cut(channels: int, height: int, width: int, double: bool) -> Cut:
    """For a convolution: several channels at a time, so that a pixel of the images is read for all of them."""
    columns = min(max(power_of_two(width), 2), WIDEST)
    plane = columns * max(power_of_two(height), 2)
    whole = width <= columns and plane <= 4096 // (1 + double)
    rows = plane // columns if whole else max(1024 // columns, 2)
    side = min(power_of_two(channels), max(MOST // (1 + double) // (rows * columns), 1), 16)
    return _cut(channels, height, width, side, rows, columns, 64 // (1 + double))


def tap_cut(channels: int, height: int, width: int, double: bool) -> Cut:
    """For the gradient of images: a tile's sums for all taps stay in registers."""
    columns = min(max(power_of_two(width), 2), WIDEST)
    plane = columns * max(power_of_two(height), 2)
    whole = width <= columns and plane <= 1024 // (1 + double)
    rows = plane // columns if whole else max(512 // columns, 2)
    side = min(power_of_two(channels), 8)
    return _cut(channels, height, width, side, rows, columns, 16 // (1 + double))


def _cut(channels: int, height: int, width: int, side: int, rows: int, columns: int, each: int) -> Cut:
    """`each` elements of a thread."""
    tiles = -(-height // rows) * -(-width // columns)
    full = channels % side == 0 and height % rows == 0 and width == columns
    options = {
        "CHANNELS": side,
        "ROWS": rows,
        "WIDTH": columns,
        "FULL": full,
        "WHOLE": tiles == 1,
        "num_warps": min(max(power_of_two(side * rows * columns // (32 * each)), 1), 16),
    }
    return Cut(-(-channels // side), tiles, options)


def splits_of(images: int, programs: int, chip: Chip) -> int:
    """In how many parts the channels of an image's gradient are added up: in few, for each leaves 9·c planes."""
    return 1 if images * programs >= chip.multiprocessors else 2
