"""Time as each device has it: the host's clock, or events on a CUDA stream."""

import time
from collections.abc import Callable
from typing import Any

import torch


class HostClock:
    def mark(self) -> Any:
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        return end - start

    def fastest(self, function: Callable[[], Any], times: int = 10) -> float:
        """The shortest of several calls, after one that does not count."""
        function()
        marks = []
        for _ in range(times):
            start = self.mark()
            function()
            marks.append((start, self.mark()))
        return min(self.seconds(*pair) for pair in marks)


class DeviceClock(HostClock):
    """Marks are events: what the host does between them counts only where the device waits for it."""

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_of(device: torch.device) -> HostClock:
    return DeviceClock() if device.type == "cuda" else HostClock()
