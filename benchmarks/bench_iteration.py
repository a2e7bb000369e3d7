"""A whole iteration of distillation: the published loop, and ddfast in its precisions.

    OMP_NUM_THREADS=2 python -m pytest benchmarks/bench_iteration.py

Networks have random weights. Every contender logs its loss, as the scripts do, which waits for the device. The scripts
leave PyTorch's flags alone, so on CUDA their convolutions are TF32. That both loops compute the same is in
tests/test_published.py.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest

from benchmarks import intervals
from benchmarks.clock import HostClock
from benchmarks.conftest import DEVICE
from benchmarks.iterations import CONTENDERS, Setting, contender
from benchmarks.measure import take_turns
from benchmarks.memory import peak_bytes
from benchmarks.replay import hand_over, replayed
from benchmarks.steps import Seconds

SETTINGS = {
    "c10-ipc10 dm": Setting(losses="dm"),
    "c10-ipc10 iid-dm": Setting(),
    "c10-ipc10 all": Setting(losses="all"),
}
CUDA_SETTINGS = {
    "c10-ipc50 iid-dm": Setting(ipc=50),
    "c100-ipc10 iid-dm": Setting(classes=100),
    "tiny-ipc10 iid-dm": Setting(classes=200, size=64, budget="8GiB"),
}
BUDGET, ROUNDS = 30.0, (5, 30)  # seconds and turns of a setting
SINGLY = " without graph"
PRECISIONS = CONTENDERS if DEVICE.type == "cpu" else (*CONTENDERS, "tf32", *(f"{it}{SINGLY}" for it in CONTENDERS[1:]))


@cache
def measured(name: str, quick: bool) -> tuple[dict[str, list[float]], dict[str, float], dict[str, int]]:
    """Of every contender the seconds of each round, and of its first call; and its peak of memory."""
    setting = (SETTINGS | CUDA_SETTINGS)[name]
    if quick:
        setting = replace(setting, classes=2, size=16, ipc=2, real=4, width=4, pool_width=4)
    turns, first, peaks = {}, {}, {}
    with ExitStack() as stack:
        for contestant in PRECISIONS:
            graph, precision = not contestant.endswith(SINGLY), contestant.removesuffix(SINGLY)
            iterate = stack.enter_context(contender(precision, setting, DEVICE, graph))
            turns[contestant] = [lambda iterate=iterate: _timed(iterate)]
            first[contestant] = _timed(iterate)["iteration"]
            peaks[contestant] = peak_bytes(iterate, DEVICE)
        samples = take_turns(turns, *((0.0, (2, 2)) if quick else (BUDGET, ROUNDS)))
    return {name: directions["iteration"] for name, directions in samples.items()}, first, peaks


def _timed(iterate: Callable[[], object]) -> Seconds:
    clock = HostClock()  # on CUDA as well: the host's work is what a loop over classes is made of
    start = clock.mark()
    iterate()
    return {"iteration": clock.seconds(start, clock.mark())}


@replayed
@pytest.mark.usefixtures("alike")
@pytest.mark.parametrize("contestant", PRECISIONS)
@pytest.mark.parametrize("name", [*SETTINGS, *(CUDA_SETTINGS if DEVICE.type == "cuda" else ())])
def test_iteration(
    request: pytest.FixtureRequest, benchmark: Any, here: dict[str, Any], name: str, contestant: str
) -> None:
    scale = request.config.getoption("--scale")
    samples, first, peaks = measured(name, scale == "quick")
    against = {
        other: asdict(intervals.ratio(samples[other], samples[contestant])) for other in samples if other != contestant
    }
    benchmark.group = f"iteration {name}"
    benchmark.extra_info |= {
        "operator": "iteration",
        "workload": name,
        "scale": "quick" if scale == "quick" else "full",
        "direction": "iteration",
        "contender": contestant,
        "device": here["gpu"] or here["cpu"],
        "threads": here["threads"],
        "versions": here["versions"],
        "commit": here["commit"],
        "median_s": asdict(intervals.median(samples[contestant])),
        "times_as_fast_as": against,
        "first_call_s": first[contestant],
        "peak_bytes": peaks[contestant],
    }
    hand_over(benchmark, samples[contestant])
