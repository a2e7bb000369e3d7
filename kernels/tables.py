"""What was measured to be fastest on a GPU, by its name: tables/<name>.json, written by `python -m benchmarks.tune`."""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "tables"


class Cut(NamedTuple):
    block: int  # descriptors of a tile
    step: int  # row-and-position pairs that are multiplied at a time
    warps: int
    stages: int


@functools.cache
def table(name: str) -> list[dict[str, int | str]]:
    """Rows of kernel, d, p, precision and the fields of a Cut; none where nobody has measured.

    A row {"kernel": "matching", "backend": "cuda"} says that the CUDA reduction was faster there than Triton's.
    """
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if name and path.exists() else []


def preferred(name: str) -> str | None:
    """The backend that was faster at moment matching; None where nobody has measured."""
    return next((str(row["backend"]) for row in table(name) if row["kernel"] == "matching"), None)


def measured(kernel: str, d: int, p: int, precision: str, name: str) -> Cut | None:
    """The cut of the nearest shape, at most a factor of four away in all."""

    def far(row: dict[str, int | str]) -> float:
        return abs(math.log2(int(row["d"]) / d)) + abs(math.log2(int(row["p"]) / p))

    rows = [row for row in table(name) if row["kernel"] == kernel and row["precision"] == precision]
    nearest = min(rows, key=far, default=None)
    if nearest is None or far(nearest) > 2:
        return None
    return Cut(*(int(nearest[field]) for field in Cut._fields))
