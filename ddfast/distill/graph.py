"""An iteration as a single launch: CUDA records its kernels once, and replays them on the same memory."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Recorded(Generic[T]):
    """A piece of work that is done once as it is written, then recorded, and from then on replayed.

    What it does is fixed when it is recorded, down to addresses. So whatever changes from one call to the next must lie
    in tensors that stay where they are, or be drawn from `generator`, whose seed may change in between.

    Args:
        work: waits for nothing on the device; its result keeps its place, and the next call writes over it.
        generator: on a CUDA device, the only one that `work` draws from; None if it draws from none.
    """

    def __init__(self, work: Callable[[], T], generator: torch.Generator | None = None) -> None:
        self._work, self._generator = work, generator
        self._warm = False
        self._recorded: tuple[T, Callable[[], None]] | None = None

    def __call__(self) -> T:
        if not self._warm:
            self._warm = True
            return warm_up(self._work)
        if self._recorded is None:
            self._recorded = record(self._work, self._generator)
        result, replay = self._recorded
        replay()
        return result


def warm_up(work: Callable[[], T]) -> T:
    """Does the work on a stream of its own, as recording will: libraries and compilers make ready what they need."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def record(work: Callable[[], T], generator: torch.Generator | None) -> tuple[T, Callable[[], None]]:
    """Where the result of `work` will be, and what does the work; nothing is done yet."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = work()
    return result, graph.replay
