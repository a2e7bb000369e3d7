"""What an iteration does when, and what it holds meanwhile: one profile of PyTorch's, read by the loop's named ranges.

A moment belongs to the innermost range around it; what lies in none is "other".
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PHASES = ("networks", "augment", "real features", "synthetic features", "losses", "backward", "step", "other")


@dataclass(frozen=True)
class Memory:
    """Bytes beyond those from before the call: the most, their mean over time, and both by phase."""

    peak: int
    average: float
    peak_by_phase: dict[str, int]


@dataclass(frozen=True)
class Profile:
    """seconds: of the call, and of each phase; they add up. kernels: seconds of each operator or kernel, with calls."""

    seconds: float
    seconds_by_phase: dict[str, float]
    kernels: dict[str, tuple[float, int]]
    memory: Memory


def profiled(call: Callable[[], Any], device: torch.device, trace: str | None = None) -> Profile:
    """One call under the profiler; `trace` is the name of a file for chrome://tracing or Perfetto."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, profile_memory=True) as found, torch.profiler.record_function("iteration"):
        call()
        if cuda:
            torch.cuda.synchronize(device)
    if trace is not None:
        found.export_chrome_trace(trace)
    events = list(found.profiler.kineto_results.events())
    (whole,) = (event for event in events if event.name() == "iteration" and not _on_gpu(event))
    start, end = whole.start_ns(), whole.start_ns() + whole.duration_ns()
    changes = _timeline([event for event in events if event.name() in PHASES and not _on_gpu(event)], start)
    at = [time for time, _ in changes]

    def phase(time: int) -> str:
        return changes[bisect_right(at, time) - 1][1]

    seconds: dict[str, float] = defaultdict(float)
    for (begun, name), (until, _) in zip(changes, [*changes[1:], (end, "")], strict=True):
        seconds[name] += (until - begun) / 1e9
    memory = [event for event in events if event.name() == "[memory]" and _on_gpu(event) == cuda]
    kernels = {row.key: _time(row, cuda) for row in found.key_averages() if row.key not in (*PHASES, "iteration")}
    steps = sorted((event.start_ns(), event.nbytes()) for event in memory if event.start_ns() <= end)
    return Profile(
        (end - start) / 1e9,
        {name: seconds[name] for name in PHASES},
        {name: spent for name, spent in kernels.items() if spent[0] > 0},
        _memory(steps, at, phase, start, end),
    )


def _timeline(ranges: Iterable[Any], start: int) -> list[tuple[int, str]]:
    """When which phase begins, in order."""
    edges = []
    for event in ranges:
        edges += [(event.start_ns(), 1, event.name()), (event.start_ns() + event.duration_ns(), 0, event.name())]
    open_phases, changes = ["other"], [(start, "other")]
    for time, opens, name in sorted(edges):
        if opens:
            open_phases.append(name)
        else:
            open_phases.remove(name)
        changes.append((time, open_phases[-1]))
    return changes


def _memory(steps: list[tuple[int, int]], at: list[int], phase: Callable[[int], str], start: int, end: int) -> Memory:
    """From what is taken and given back when. Where a phase begins counts as well: it has what is there already."""
    held, last, area = 0, start, 0.0
    peaks: dict[str, int] = dict.fromkeys(PHASES, 0)
    for time, change in sorted([*steps, *((edge, 0) for edge in at)]):
        area += held * (max(time, start) - last)
        held, last = held + change, max(time, start)
        peaks[phase(time)] = max(peaks[phase(time)], held)
    area += held * (end - last)
    return Memory(max(peaks.values()), area / (end - start), peaks)


def _on_gpu(event: Any) -> bool:
    return event.device_type() == torch.autograd.DeviceType.CUDA


def _time(row: Any, cuda: bool) -> tuple[float, int]:
    """Of an operator itself, without those that it calls; on CUDA of its kernels."""
    return (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1e6, row.count
