"""What is predicted for an H100 before any has run a kernel, so that the first card confirms or refutes it.

    python -m benchmarks.gpu predictions            prints the tables
    python -m benchmarks.gpu predictions --write    ... into docs/gpu.md

Bytes and operations are counted from the launches (benchmarks/roofline.py). `overlapped` is the time if bytes and
operations hid behind each other in every kernel, `added` if they did not: a measured time belongs between the two, or
the count has missed something.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import roofline
from benchmarks.calls import losses
from benchmarks.environment import ROOT
from benchmarks.floors import floor
from benchmarks.kernels import CHIPS, launches
from benchmarks.workloads import WORKLOADS

# Seconds of float32 forward and backward in a graph on an H100, from an audit of the SASS before it was acted upon.
PREDICTED = {("moment_matching", "c10-ipc10"): 33e-6, ("moment_matching", "tiny-ipc50"): 420e-6}
BEGIN, END = "<!-- predictions:begin -->", "<!-- predictions:end -->"
CARD = "H100"
LAUNCH = 1.5e-6  # seconds that a kernel of a graph takes at least
SHOWN = ("c10-ipc10", "c10-ipc50", "tiny-ipc50", "tiny-rows-ipc10")


def tables() -> Iterator[str]:
    yield "| workload | kernel | MB | GFLOP of tensor cores | bytes alone | operations alone | overlapped | added |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    card, chip = roofline.CARDS[CARD], CHIPS[CARD]
    for workload in WORKLOADS.values():
        whole = [0.0, 0.0]
        for launch in roofline.matching(workload):
            cost = roofline.cost(launch)
            moved, both = cost.bytes / card.copy, cost.seconds(card, chip.multiprocessors)
            computed = roofline.Cost(0, cost.programs).seconds(card, chip.multiprocessors)
            whole = [whole[0] + both, whole[1] + moved + computed]
            cells = (workload.name, launch.kernel.__name__, f"{cost.bytes / 1e6:.1f}", f"{cost.operations / 1e9:.2f}")
            times = (f"{1e6 * seconds:.1f} µs" for seconds in (moved, computed, both, moved + computed))
            yield f"| {' | '.join((*cells, *times))} |"
        least = floor("moment_matching", workload, "both").seconds(card)
        times = (f"{1e6 * seconds:.1f} µs" for seconds in whole)
        yield f"| {workload.name} | **all**, floor {1e6 * least:.1f} µs | | | | | {' | '.join(times)} |"


def least() -> Iterator[str]:
    """Every operator in float32 with its gradient: the floor of its bytes and products, and that of its launches."""
    yield "| operator | workload | launches | of bytes and products | of launches | no faster than |"
    yield "|---|---|--:|--:|--:|--:|"
    for name in SHOWN:
        workload = WORKLOADS[name]
        counts = [len(launches([call], CHIPS[CARD])) for call in losses(workload, torch.float32)]
        both = {"moment_matching": (0, 1), "class_moments": (2,), "class_complexity": (3, 4), "augment": (5, 6)}
        for operator, calls in both.items():
            direction = "forward" if len(calls) == 1 else "both"
            count = sum(counts[number] for number in calls)
            moved = floor(operator, workload, direction).seconds(roofline.CARDS[CARD])
            times = (f"{1e6 * seconds:.1f} µs" for seconds in (moved, count * LAUNCH, max(moved, count * LAUNCH)))
            yield f"| {operator} | {name} | {count} | {' | '.join(times)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    lines = [*tables(), "", *least()]
    print("\n".join(lines))
    if options.write:
        write(ROOT / "docs" / "gpu.md", lines)
    return 0


def write(path: Path, lines: list[str]) -> None:
    head, rest = path.read_text().split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")
