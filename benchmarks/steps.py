"""A contender on an input set, called as a training script calls it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Function
from benchmarks.clock import HostClock

Seconds = dict[str, float]  # by direction


class Step:
    def __init__(self, function: Function, features: Tensor, differentiable: bool, upstream: Tensor | None = None):
        self.function, self.features, self.upstream = function, features.detach(), upstream
        self.leaf = features.detach().requires_grad_(differentiable)
        self.runs: dict[str, Callable[[], Any]] = {"forward": self.forward}
        if differentiable:
            self.runs["both"] = self.both

    def forward(self) -> None:
        """Without a gradient."""
        with torch.no_grad():
            self.function(self.features)

    def both(self, between: Callable[[], Any] = lambda: None) -> None:
        """The result, then its gradient."""
        result = self.function(self.leaf)
        between()
        torch.autograd.grad(result, self.leaf, self.upstream)

    def timed(self, run: str, clock: HostClock) -> Seconds:
        """Of "forward", or of "both" and of its second part, "backward"."""
        marks = [clock.mark()]
        if run == "forward":
            self.forward()
            return {"forward": clock.seconds(marks[0], clock.mark())}
        self.both(lambda: marks.append(clock.mark()))
        marks.append(clock.mark())
        return {"backward": clock.seconds(*marks[1:]), "both": clock.seconds(marks[0], marks[2])}
