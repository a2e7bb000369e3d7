"""How accurate half-precision splits are beside those of TF32, on tensor cores that truncate: simulated in NumPy.

A product of as many columns as an instruction has is exact, and added to a float32 sum toward zero. `flushed` is how
many columns one such sum sees before it is added to that of the program by ordinary additions. `python -m
benchmarks.hopper accuracy` prints the table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

D, P, STEP = 128, 16, 64  # descriptors, positions; columns of a step of the Hopper kernel
Array = np.ndarray


@dataclass(frozen=True)
class Split:
    """Halves of a number: how they are rounded, and the columns of one tensor-core instruction."""

    name: str
    rounded: Callable[[Array], Array]
    columns: int
    scaled: str | None = None  # by the first rows and what does not fit later, or each step by its own largest
    flushed: int | None = STEP  # columns that one accumulator of the tensor cores sees, None: all of a program


def to_tf32(x: Array) -> Array:
    return ((x.view(np.int32) + 0x1000) & -0x2000).view(np.float32)


def to_half(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float32)


SPLITS = (
    Split("tf32, not flushed", to_tf32, 8, flushed=None),
    Split("tf32", to_tf32, 8),
    Split("fp16, not flushed", to_half, 16, "program", flushed=None),
    Split("fp16", to_half, 16, "program"),
    Split("fp16, a scale a step", to_half, 16, "step"),
)


def toward_zero(x: Array) -> Array:
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def scales(y: Array, scaled: str | None) -> Iterator[float]:
    """The scale of each step of `y` (D, columns)."""
    scale = 0.0
    for start in range(0, y.shape[1], STEP):
        largest = float(np.abs(y[:, start : start + STEP]).max()) if scaled else 0.0
        if largest and (scaled == "step" or not scale or largest * scale >= 2.0**15):
            scale = 2.0 ** (9 - np.floor(np.log2(largest)))
        yield scale or 1.0


def program(y: Array, split: Split) -> Array:
    """The products (D, D) of one program's deviations (D, columns)."""
    total, part = np.zeros((D, D), np.float32), np.zeros((D, D), np.float32)
    for start, scale in zip(range(0, y.shape[1], STEP), scales(y, split.scaled), strict=True):
        scaled = y[:, start : start + STEP] * np.float32(scale)
        hi = split.rounded(scaled)
        lo = split.rounded(scaled - hi)
        weight = 0.5 / scale**2 if split.flushed else 1.0
        unit = 1.0 if split.flushed else 0.5 / scale**2
        for right in (2 * lo, hi):
            for k in range(0, hi.shape[1], split.columns):
                here = slice(k, k + split.columns)
                part = toward_zero(part + unit * (hi[:, here].astype(float) @ right[:, here].astype(float).T))
        if split.flushed:
            total, part = (total + part * np.float32(weight)).astype(np.float32), np.zeros_like(part)
    total = total + part
    return total + total.T


def sigma(x: Array, split: Split | None, rows: int) -> Array:
    """Sigma of one class (N, D, P), exactly or by programs of so many rows each; sums are taken as exact."""
    y = x - x[:1] if split else x.astype(float) - x.astype(float).mean(0)
    columns = y.transpose(1, 0, 2).reshape(D, -1)
    if split is None:
        return columns @ columns.T / len(x)
    ends = [*range(0, len(x), rows), len(x)]
    products = sum(program(columns[:, P * a : P * b], split).astype(float) for a, b in pairwise(ends))
    sums = y.astype(float).sum(0)
    return (products - sums @ sums.T / len(x)) / len(x)


def features(kind: str, rows: int, shift: float, rng: np.random.Generator, centre: Array) -> Array:
    x = rng.standard_normal((rows, D, P)) + centre + shift
    if kind.startswith("mean/spread"):
        return (x + float(kind.split()[1])).astype(np.float32)
    x = np.maximum(x, 0)
    if kind == "t, 2 degrees, ReLU":
        x = np.maximum(rng.standard_t(2, x.shape) + centre + shift, 0)
    if "x 100" in kind:
        x[0 if "pivot" in kind else rows // 2] *= 100
    return x.astype(np.float32)


KINDS = (
    *("mean/spread 1", "mean/spread 10", "mean/spread 1000"),
    *("ReLU", "t, 2 degrees, ReLU", "ReLU, a row x 100", "ReLU, the pivot x 100"),
)
CASES = ((256, 50, 256, KINDS), (1024, 1000, 256, ("ReLU",)))


def accuracy() -> Iterator[str]:
    yield f"| rows | features | {' | '.join(split.name for split in SPLITS)} |"
    yield f"|---|---|{'---|' * len(SPLITS)}"
    for real, ipc, rows, kinds in CASES:
        for kind in kinds:
            rng = np.random.default_rng(0)
            centre = 0.5 + 0.5 * rng.standard_normal((D, P))
            r, s = features(kind, real, 0, rng, centre), features(kind, ipc, 0.1, rng, centre)
            of_r, of_s = sigma(r, None, 0), sigma(s, None, 0)
            y = (s - s.astype(float).mean(0)).transpose(1, 0, 2).reshape(D, -1)
            cells = []
            for split in SPLITS:
                got_r, got_s = sigma(r, split, rows), sigma(s, split, rows)
                gap, exact = got_s - got_r, of_s - of_r
                pairs = ((got_r, of_r), (gap, exact), (gap @ y, exact @ y))
                cells.append(", ".join(f"{np.linalg.norm(a - b) / np.linalg.norm(b):.1e}" for a, b in pairs))
            yield f"| {real}, {ipc} | {kind} | {' | '.join(cells)} |"
