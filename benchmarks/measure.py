"""Times all contenders of a case in one process, taking turns: each round times each of them once, in random order.

So a machine that slows down slows all of them down, and the ratios of a round's samples stay what they are.
"""

import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks import intervals
from benchmarks.baselines import BASELINES
from benchmarks.cases import Case
from benchmarks.ceilings import Ceilings
from benchmarks.clock import HostClock, clock_of
from benchmarks.floors import floor
from benchmarks.gate import Gate
from benchmarks.graphs import Graph
from benchmarks.memory import peak_bytes
from benchmarks.steps import Seconds, Step
from tests.oracle import Batch

Turn = Callable[[], Seconds]


@dataclass
class Measured:
    """Of each contender: seconds of every round and of the first call, peak bytes; or why there are none."""

    input_sets: int
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    first_call: dict[str, Seconds] = field(default_factory=dict)
    peak: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    not_captured: dict[str, str] = field(default_factory=dict)  # as a CUDA graph


def measure(case: Case, budget: float, rounds: tuple[int, int], only: Collection[str] | None = None) -> Measured:
    """Takes turns for about `budget` seconds, but no fewer and no more rounds than said; of `only` some contenders."""
    clock, (batches, small) = clock_of(case.device), input_sets(case)
    measured, gate, turns = Measured(len(batches)), Gate(case, batches[:2]), {}
    number = itertools.count()  # of the input set, over all turns: what is read next was not read lately
    for name, bind in case.contenders(only).items():
        steps = [Step(bind(it), case.features(it), case.differentiable, case.upstream(it)) for it in batches]
        runs = steps[0].runs
        measured.first_call[name] = {k: v for run in runs for k, v in steps[0].timed(run, clock).items()}
        reason = gate.refusal(name, bind)
        if reason is not None:
            measured.refused[name] = reason
            continue
        measured.peak[name] = {run: peak_bytes(call, case.device) for run, call in runs.items()}
        turns[name] = [partial(_next, steps, number, run, clock) for run in runs]
        if not small:
            measured.not_captured[name] = "inputs larger than the cache: launches are no part of the time"
        elif name != "loop":  # whose launches are what it costs
            try:
                turns[name] += [partial(_replay, f"{run}-graph", _graph(steps, run), clock) for run in runs]
            except RuntimeError as error:
                measured.not_captured[name] = f"no CUDA graph of {name}: {error}"
    del gate
    measured.samples = take_turns(turns, budget, rounds)
    return measured


def described(
    measured: Measured, case: Case, contender: str, direction: str, ceilings: Ceilings, here: dict[str, Any]
) -> dict[str, Any]:
    """What is known of a contender's samples: their median, ratios to the baselines, and the share of the floor."""
    samples, run = measured.samples[contender], direction.removesuffix("-graph")
    needed = floor(case.operator, case.workload, run)
    seconds = intervals.median(samples[direction])
    against = {
        baseline: asdict(intervals.ratio(measured.samples[baseline][direction], samples[direction]))
        for baseline in BASELINES
        if baseline != contender and direction in measured.samples.get(baseline, {})
    }
    return {
        "operator": case.operator,
        "workload": case.workload.name,
        "scale": case.workload.scale,
        "direction": direction,
        "contender": contender,
        "dtype": "float32",
        "device": here["gpu"] or here["cpu"],
        "versions": here["versions"],
        "commit": here["commit"],
        "median_s": asdict(seconds),
        "times_as_fast_as": against,
        "first_call_s": measured.first_call[contender].get(direction),
        # backward is the second part of both, and has its peak
        "peak_bytes": measured.peak[contender].get("both" if run == "backward" else run),
        "gb_per_s": needed.bytes / seconds.value / 1e9,
        "gflop_per_s": needed.operations / seconds.value / 1e9,
        "floor_s": needed.seconds(ceilings),
        "fraction_of_floor": needed.seconds(ceilings) / seconds.value,
        "ceilings": asdict(ceilings),
        "input_sets": measured.input_sets,
    }


def _next(steps: list[Step], number: Iterator[int], run: str, clock: HostClock) -> Seconds:
    return steps[next(number) % len(steps)].timed(run, clock)


def _graph(steps: list[Step], run: str) -> Graph:
    return Graph([step.runs[run] for step in steps])


def _replay(direction: str, graph: Graph, clock: HostClock) -> Seconds:
    return {direction: graph.seconds(clock)}


def input_sets(case: Case) -> tuple[list[Batch], bool]:
    """Two, or as many as fill the device's cache twice; and whether it took more than one to do so."""
    first = case.batch(0)
    size = sum(side.numel() * side.element_size() for side in (first.real, first.syn))
    cache = torch.cuda.get_device_properties(case.device).L2_cache_size if case.device.type == "cuda" else 0
    needed = sets_beyond(cache, size)
    return [first, *(case.batch(seed) for seed in range(1, max(2, needed)))], needed > 1


def sets_beyond(cache: int, size: int) -> int:
    return math.ceil(2 * cache / size)


def take_turns(
    turns: dict[str, list[Turn]], budget: float, rounds: tuple[int, int]
) -> dict[str, dict[str, list[float]]]:
    """The samples of each contender by direction, as many of each; the same index is the same round."""
    start = time.perf_counter()
    for turn in itertools.chain(*turns.values()):  # warm, and how long a round takes
        turn()
    count = min(max(int(budget / (time.perf_counter() - start)), rounds[0]), rounds[1]) if turns else 0
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in turns}
    names, order = list(turns), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(count):
            order.shuffle(names)
            for name in names:
                for turn in turns[name]:
                    for direction, seconds in turn().items():
                        samples[name].setdefault(direction, []).append(seconds)
    finally:
        gc.enable()
    return samples
