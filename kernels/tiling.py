"""How `moments` and `matching` cut their work: by the shapes, the dtype and the chip, never by timing in a run."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from .tables import Cut, measured

OVERHEAD = 5  # rows
PART = 32  # descriptors
SQUARES = 2048  # that one program adds up at a time


@dataclass(frozen=True)
class Chip:
    arch: int  # 80, 90, 100
    multiprocessors: int
    name: str = ""  # as its table is called


class Tiling(NamedTuple):
    block: int  # descriptors of a tile
    rows: int  # rows and positions of a step
    block_p: int
    warps: int
    stages: int


def power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def divisor(*sizes: int) -> int:
    """What divides all these sizes and must be said: of an argument Triton asks only for 16; 1 if there is nothing."""
    common = math.gcd(*sizes, 16)
    return 1 if common == 16 else common


def moments_tiling(d: int, p: int, precision: str, chip: Chip) -> Tiling:
    """Tiles as large as the registers allow: a larger one reads the features fewer times.

    The sum and the accumulator of a step take most of them. On an H100 two programs of four warps share a
    multiprocessor, so that one multiplies while the other subtracts, rounds and waits for copies.
    """
    block = {"float64": 32, "float32": 128 if chip.arch >= 100 and d <= 128 else 64, "tf32": 128}[precision]
    step = 32 if chip.arch >= 90 and precision != "float64" else 16
    cut = Cut(block, step, 4 if block == 32 or (block == 64 and chip.arch == 90) else 8, 3)
    return _tiling(d, p, measured("moments", d, p, precision, chip.name) or cut)


def backward_tiling(d: int, p: int, precision: str, chip: Chip) -> Tiling:
    wide = chip.arch >= 90 and precision != "float64"
    block, step = (128, 64) if wide else (32 if precision == "float64" else 64, 32)
    return _tiling(
        d, p, measured("backward", d, p, precision, chip.name) or Cut(block, step, 8 if block > 32 else 4, 3)
    )


def _tiling(d: int, p: int, cut: Cut) -> Tiling:
    """A cut for features that may be smaller than it."""
    block, block_p = min(cut.block, max(16, power_of_two(d))), min(cut.step, power_of_two(p))
    return Tiling(block, cut.step // block_p, block_p, cut.warps if block >= 64 else min(cut.warps, 4), cut.stages)


def merge_tiling(block: int, precision: str) -> Tiling:
    """Parts of a tile that `merge` takes: small, for there are few tiles, and most of its time is waiting for them.

    A thread of four warps has four positions of a sum, which it reads with one access of 16 bytes. In float64 it takes
    eight: with four, Triton 3.6 uses the stack.
    """
    if precision == "float64":
        return Tiling(min(block, PART // 2), 1, 16, 8, 2)
    return Tiling(min(block, PART), 1, 16, 4, 2)


def pieces(d: int, block: int, triangle: bool) -> int:
    """Tiles of the upper triangle of a (d, d) matrix, or of its diagonal."""
    n = -(-d // block)
    return n * (n + 1) // 2 if triangle else n


def rows_of_a_program(sides: tuple[int, ...], programs: int, chip: Chip) -> int:
    """How many rows of a class one program reads, where the largest classes of the sides have so many.

    Fewer rows fill the chip better and end more evenly, but each program writes partials, which cost about as much as
    OVERHEAD rows. Estimated for one program a multiprocessor at a time, the longer ones first.
    """

    def time(rows: int) -> float:
        counts = [(-(-largest // rows), min(rows, largest) + OVERHEAD) for largest in sides]
        waves = -(-counts[0][0] * programs // chip.multiprocessors)
        work = sum(splits * programs * length for splits, length in counts) / chip.multiprocessors
        return max(waves * counts[0][1], work + 0.5 * counts[-1][1])

    longest = max(*sides, 1)
    return min((-(-longest // splits) for splits in range(1, min(longest, 64) + 1)), key=time)
