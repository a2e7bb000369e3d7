"""How `complexity` and its backward cut their work: by the shapes, the dtype and the chip, never by timing in a run."""

from typing import Any, NamedTuple

from .tiling import Chip, power_of_two

SMALL = 2048  # elements that a tile has at least, of several classes if need be
LARGE = 4096  # elements that it has at most, unless one row has more; half as many in float64
MOST_SPLITS = 64  # each program of a class adds up what all of them left


class Cut(NamedTuple):
    """How many programs there are, and the options of their kernels."""

    grid: tuple[int, int]
    options: dict[str, Any]


def class_cut(num_classes: int, largest: int, width: int, float64: bool, chip: Chip) -> Cut:
    """For `num_classes` of at most `largest` rows of `width` features.

    A class is split where there are fewer of them than multiprocessors and it has rows enough to repay a launch.
    """
    columns = power_of_two(width)
    rows = min(power_of_two(largest), max(LARGE // (1 + float64) // columns, 1))
    classes = min(power_of_two(num_classes), max(SMALL // (rows * columns), 1))
    splits = 1
    if largest >= 8 * rows:
        splits = max(min(chip.multiprocessors // num_classes, largest // (2 * rows), MOST_SPLITS), 1)
    warps = min(max(classes * rows * columns * (1 + float64) // 256, 1), 8 if rows > 1 else 16)
    options = {"CLASSES": classes, "ROWS": rows, "WIDTH": columns, "FULL": columns == width, "num_warps": warps}
    return Cut((-(-num_classes // classes), splits), options)
