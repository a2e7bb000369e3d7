"""Measures which cut of `moments` and `matching_backward` is fastest on this GPU, and writes its table.

    python -m benchmarks.tune [--workloads ...]

Every candidate runs a whole moment matching, forward and backward, with the inputs taking turns beyond the cache; one
whose result differs from the heuristics' is refused. The table is kernels/tables/<GPU>.json, which the kernels read.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from benchmarks import inputs
from benchmarks.clock import clock_of
from benchmarks.measure import sets_beyond
from benchmarks.workloads import WORKLOADS, Workload
from ddfast.kernels import tables, tiling
from ddfast.kernels.tables import Cut
from ddfast.operators.launch import chip_of, forget
from tests.oracle import MATCHING, differentiate, frobenius

PRECISIONS = {"float32": torch.float32, "tf32": torch.bfloat16}
SPACE = {
    "moments": [Cut(*cut) for cut in itertools.product((64, 128), (16, 32, 64), (4, 8, 16), (2, 3, 4))],
    "backward": [Cut(*cut) for cut in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))],
}
AGREES = {"float32": 1e-5, "tf32": 2e-2}


def shapes(names: list[str]) -> dict[tuple[int, int], Workload]:
    """The heaviest workload of each feature shape."""
    chosen: dict[tuple[int, int], Workload] = {}
    for workload in sorted((WORKLOADS[name] for name in names), key=lambda w: w.classes * (w.real + w.ipc)):
        chosen[workload.descriptors] = workload
    return chosen


def tune(
    workload: Workload, precision: str, device: torch.device, candidates: dict[str, list[Cut]] = SPACE
) -> Iterator[dict[str, Any]]:
    """The rows of the table for a workload's shape: one kernel after the other, the best so far kept."""
    loss = next(loss for loss in MATCHING if loss.name == ("mm-rows" if workload.local == "rows" else "mm"))
    first = inputs.matching(workload, device, 0).to(PRECISIONS[precision])
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    size = first.real.numel() * first.real.element_size()
    more = (inputs.matching(workload, device, seed) for seed in range(1, max(1, sets_beyond(cache, size))))
    batches = itertools.cycle([first, *(batch.to(PRECISIONS[precision]) for batch in more)])
    d, p = workload.descriptors
    kept: dict[str, Cut] = {}

    def measured(kernel: str, *_: Any) -> Cut | None:
        return kept.get(kernel)

    def keep(kernel: str, cut: Cut | None) -> None:
        kept.pop(kernel, None)
        if cut is not None:
            kept[kernel] = cut
        forget()

    def run() -> list[torch.Tensor]:
        batch = next(batches)
        return list(differentiate(loss.of(batch, "triton"), batch.syn))

    forget()
    with mock.patch.object(tiling, "measured", measured):
        right = list(differentiate(loss.of(first, "triton"), first.syn))
        for kernel, space in candidates.items():
            best = (clock_of(device).fastest(run), None)
            for cut in space:
                keep(kernel, cut)
                try:
                    result = list(differentiate(loss.of(first, "triton"), first.syn))
                    if max(frobenius(one, other) for one, other in zip(result, right, strict=True)) > AGREES[precision]:
                        print(f"{kernel} {cut} gives another result and is refused", flush=True)
                        continue
                    best = min(best, (clock_of(device).fastest(run), cut), key=lambda pair: pair[0])
                except Exception as error:  # too much shared memory, say: another candidate, then
                    print(f"{kernel} {cut} does not run: {type(error).__name__}", flush=True)
            seconds, cut = best
            keep(kernel, cut if math.isfinite(seconds) else None)
            print(
                f"{workload.name} {precision} {kernel}: {1e6 * seconds:.0f} µs with {cut or 'the heuristics'}",
                flush=True,
            )
            if cut is not None and math.isfinite(seconds):
                yield {"kernel": kernel, "d": d, "p": p, "precision": precision, **cut._asdict()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", default=["tiny-ipc50", "tiny-rows-ipc10"], choices=list(WORKLOADS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("tuning needs a CUDA device", file=sys.stderr)
        return 2
    device, rows = torch.device("cuda"), []
    for workload, precision in itertools.product(shapes(options.workloads).values(), PRECISIONS):
        rows += tune(workload, precision, device)
        tables.FOLDER.mkdir(exist_ok=True)  # after each, so that what is measured is there whatever comes
        (tables.FOLDER / f"{chip_of(device).name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
