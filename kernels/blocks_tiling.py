"""How the kernels of the blocks cut their work: by the shapes and the dtype, never by timing in a run.

A thread has so many elements of a tile that they stay in its registers; in float64 half as many.
"""

import math
from typing import Any, NamedTuple

from .tables import table
from .tiling import Chip, power_of_two

WIDEST = 256  # pixels of a row that a tile has at most
WARP = 32  # threads
WHOLE = 8192  # elements that a program keeps


class Cut(NamedTuple):
    """How many programs an image has, how many tiles a plane, and the options of their kernels."""

    programs: int
    tiles: int
    options: dict[str, Any]


def block_cut(channels: int, height: int, width: int, last: bool, itemsize: int) -> Cut:
    """For a map that is read: its planes whole if WHOLE elements hold them.

    NCHW has a warp for 1,024 elements, which then adds up a plane by itself, without a barrier. channels_last has 32
    bytes of channels or more side by side, which are what memory gives at a time: eight, or 16 of 16 bits.
    """
    double, least = itemsize == 8, (16 if itemsize == 2 else 8) if last else 1
    rows, columns, whole = _plane(height, width, WHOLE // least // (1 + double))
    if not whole:
        rows = max((1024 // least if last else 4096) // (1 + double) // columns, 2)
    usual = (4096 if last else 1024) // (1 + double)
    side = max(usual // (rows * columns), least)
    side = min(side, power_of_two(channels))
    return _cut(channels, height, width, side, rows, columns, (16 if last else 32) // (1 + double))


def conv_cut(channels: int, height: int, width: int, double: bool, backward: bool) -> Cut:
    """For a map that is convolved: a pixel of the images that is read serves all channels of a tile."""
    rows, columns, whole = _plane(height, width, 4096 // (1 + double))
    if not whole:
        rows = max(1024 // (1 + double) // columns, 2)
    plane = rows * columns * (1 + double)
    side = min(max(8192 // plane, 4), 16, power_of_two(channels))
    each = 32 if backward or plane > 1024 else 64
    return _cut(channels, height, width, side, rows, columns, each // (1 + double))


def tap_cut(channels: int, height: int, width: int, itemsize: int) -> Cut:
    """For the gradient of images: one pixel of a thread, whose 36 sums are in its registers as well.

    Beside them there is room for four channels: with eight of float32, Triton 3.6 spills.
    """
    double, side = itemsize == 8, min(4, power_of_two(channels))
    rows, columns, whole = _plane(height, width, 512 // (1 + double))
    if not whole:
        rows = max(256 // columns, 2)
    return _cut(channels, height, width, side, rows, columns, side)


def product_cut(channels: int, height: int, width: int, inputs: int, itemsize: int, backward: bool) -> Cut:
    """For a map that is convolved by tensor cores: as many channels as they take, so that few programs gather patches.

    A warp has 16 channels, whose sums over the pixels are then its own.
    """
    side, pixels = max(min(power_of_two(channels), 64), 16), 64 if backward or itemsize == 4 else 128
    rows, columns, _ = _plane(height, width, 0)
    columns = min(columns, pixels // 2)
    rows = max(min(rows, pixels // columns), 2, 16 // columns)
    cut = _cut(channels, height, width, side, rows, columns, 64)
    terms = max(power_of_two(9 * inputs), 16)
    return cut._replace(options=cut.options | {"TERMS": terms, "num_warps": max(side // 16, 1), "num_stages": 1})


def fastest(operator: str, pixels: int, precision: str, chip: Chip) -> str:
    """Which way `conv_block` or `conv_block_backward` goes: "fma", "product", or "plain", which is cuDNN + norm_block.

    Rows {"kernel": operator, "p": pixels of a plane, "precision": ..., "path": ...} of the chip's table decide, by the
    nearest plane; without any, the prediction does. It is "product" wherever tensor cores have the precision:
    `python -m benchmarks.block_variants` counts what that rests on.
    """
    rows = [row for row in table(chip.name) if (row["kernel"], row["precision"]) == (operator, precision)]
    if rows:
        return str(min(rows, key=lambda row: abs(math.log2(int(row["p"]) / pixels)))["path"])
    return "fma" if precision == "float64" else "product"


def splits_of(images: int, tiles: int, chip: Chip) -> int:
    """In how many parts the channels of an image's gradient are added up: in few, for each leaves 9·c planes."""
    return 1 if images * tiles >= chip.multiprocessors else 2


def _plane(height: int, width: int, most: int) -> tuple[int, int, bool]:
    """Rows and columns of a tile that holds a plane, two or more for the sake of pooling; whether `most` pixels do."""
    rows, columns = (max(power_of_two(extent), 2) for extent in (height, width))
    return rows, min(columns, WIDEST), rows * columns <= most and columns <= WIDEST


def _cut(channels: int, height: int, width: int, side: int, rows: int, columns: int, each: int) -> Cut:
    """`each` elements of a thread."""
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
