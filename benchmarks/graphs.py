"""Small kernels on CUDA: calls on all input sets as one graph, so that launches from Python are no part of the time."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.clock import HostClock

AT_LEAST = 20  # calls in a graph, so that an event's resolution is nothing


class Graph:
    def __init__(self, calls: list[Callable[[], Any]]):
        calls = calls * -(-AT_LEAST // len(calls))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a capture must not meet anything for the first time
            for call in calls[:3]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.calls, self.graph = len(calls), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in calls:
                call()

    def seconds(self, clock: HostClock) -> float:
        """Of one call."""
        start = clock.mark()
        self.graph.replay()
        return clock.seconds(start, clock.mark()) / self.calls
