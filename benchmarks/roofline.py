"""What the kernels' tiling moves and computes for the standard workloads, beside the floor, on an H100's figures.

    python -m benchmarks.roofline            prints the table
    python -m benchmarks.roofline --write    ... into docs/roofline.md

Counted from the launches themselves, without running them: bytes of all that a kernel reads or writes at least once,
operations of tensor cores as they are issued, with what padding adds. `time` is that of each kernel's larger part, and
of its programs one after another on the multiprocessors, added up.
"""

import argparse
import heapq
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.calls import losses
from benchmarks.ceilings import Ceilings
from benchmarks.environment import ROOT
from benchmarks.floors import ITEM, floor
from benchmarks.kernels import CHIPS, Launch, launches
from benchmarks.workloads import WORKLOADS, Workload

TF32 = 494.7e12  # operations a second, dense, of an H100 or H200 SXM
CARDS = {  # bytes a second
    "H100": Ceilings(copy=3.35e12, float32=67e12, tf32=TF32, bf16=2 * TF32),
    "H200": Ceilings(copy=4.8e12, float32=67e12, tf32=TF32, bf16=2 * TF32),
}
BEGIN, END = "<!-- roofline:begin -->", "<!-- roofline:end -->"


@dataclass(frozen=True)
class Cost:
    bytes: float
    programs: list[float]  # operations of each, in the order of their launch

    @property
    def operations(self) -> float:
        return sum(self.programs)

    def seconds(self, card: Ceilings, multiprocessors: int) -> float:
        """As long as its bytes take, or its programs on multiprocessors that each take the next one when free."""
        free = [0.0] * multiprocessors
        for operations in self.programs:
            heapq.heapreplace(free, free[0] + operations)
        return max(self.bytes / card.copy, max(free) * multiprocessors / card.tf32)


def cost(launch: Launch) -> Cost:
    return {
        "moments_kernel": _moments,
        "merge_kernel": _merge,
        "backward_kernel": _backward,
    }[launch.kernel.__name__](launch.arguments)


def _moments(a: dict[str, Any]) -> Cost:
    features = sum(side.numel() for side, splits in ((a["real"], "real_splits"), (a["syn"], "splits")) if a[splits])
    partials = a["sums"].numel() + _used(a) * a["products"].numel()
    # A tile on the diagonal takes two products of halves, any other one three.
    diagonal = (math.isqrt(8 * a["TILES"] + 1) - 1) // 2
    step = [products * 2 * a["BLOCK"] ** 2 * a["ROWS"] * a["BLOCK_P"] for products in (2, 3)]
    programs = []
    for splits, rows, largest in (("real_splits", "real_rows", "real_largest"), ("splits", "rows", "largest")):
        for split in range(a[splits]):
            met = min(a[rows], a[largest] - split * a[rows])
            steps = -(-met // a["ROWS"]) * -(-a["p"] // a["BLOCK_P"])
            programs += [float(steps * step[0])] * (a["classes"] * diagonal)
            programs += [float(steps * step[1])] * (a["classes"] * (a["TILES"] - diagonal))
    return Cost(ITEM * (features + partials), programs)


def _used(a: dict[str, Any]) -> float:
    """The share of the partial products that is stored and read: of a single tile its upper parts."""
    parts = a["BLOCK"] // a["PART"]
    return (parts + 1) / (2 * parts) if a["TILES"] == 1 else 1.0


def _merge(a: dict[str, Any]) -> Cost:
    names = ("sums", "share", "centers", "drift", "mean_gap", "covariance_gap", "squares")
    moved = sum(a[name].numel() for name in names if a[name] is not None) + _used(a) * a["products"].numel()
    sides = 2 if a["REAL"] == "features" else 1
    each = sides * 3 * 2 * a["PART"] ** 2 * a["BLOCK_P"] * -(-a["p"] // a["BLOCK_P"])
    return Cost(ITEM * moved, [float(each)] * (a["PARTS"] * a["classes"]))


def _backward(a: dict[str, Any]) -> Cost:
    names = ("gradient", "syn", "share", "centers", "drift", "mean_gap", "covariance_gap")
    width = a["ROWS"] * a["BLOCK_P"]
    each = 3 * 2 * a["BLOCK"] * width * -(-a["d"] // a["STEP"]) * a["STEP"] * -(-a["p"] // a["BLOCK_P"])
    classes = a["share"].numel()
    return Cost(ITEM * sum(a[name].numel() for name in names), [float(each)] * (a["TILES"] * a["blocks"] * classes))


def table(workloads: list[Workload]) -> Iterator[str]:
    yield "| workload | card | bytes: floor | tiling | × | operations: floor | tiling | × | time: floor | tiling | × |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for workload in workloads:
        needed = floor("moment_matching", workload, "both")
        operations = 3 * needed.operations
        for name, card in CARDS.items():
            chip = CHIPS["H100"]
            found = [cost(launch) for launch in matching(workload)]
            moved, done = sum(c.bytes for c in found), sum(c.operations for c in found)
            best, time = needed.seconds(card), sum(c.seconds(card, chip.multiprocessors) for c in found)
            cells = (
                *(workload.name, name, f"{needed.bytes / 1e6:.0f} MB", f"{moved / 1e6:.0f} MB"),
                *(f"{moved / needed.bytes:.2f}", f"{operations / 1e9:.1f} G", f"{done / 1e9:.1f} G"),
                *(f"{done / operations:.2f}", f"{1e6 * best:.0f} µs", f"{1e6 * time:.0f} µs", f"{time / best:.2f}"),
            )
            yield f"| {' | '.join(cells)} |"


def matching(workload: Workload) -> list[Launch]:
    """Those of moment matching, forward and backward."""
    found = launches(losses(workload, torch.float32), CHIPS["H100"])
    return found[: [launch.kernel.__name__ for launch in found].index("backward_kernel") + 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = list(table(list(WORKLOADS.values())))
    print("\n".join(lines))
    if options.write:
        path = ROOT / "docs" / "roofline.md"
        head, rest = path.read_text().split(BEGIN)
        path.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
