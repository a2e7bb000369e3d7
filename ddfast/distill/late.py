"""The terms of an iteration on their way to the host, which reads them some iterations later and so never waits."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

LATE = 4  # iterations; on a CPU there is nothing to wait for, and none


@dataclass(frozen=True)
class Row:
    """The terms (5,) of an iteration in the host's memory, where they are once `copied` has come to pass."""

    iteration: int
    terms: Tensor
    copied: torch.cuda.Event | None


class Late:
    """Rows in the order of their iterations, each to be read once.

    The host cannot be further ahead of the device than the oldest row that it has yet to read. How late a row is read
    depends on numbers of iterations alone, so all ranks read the same rows at the same time.

    Args:
        device: where terms come from.
        delay: iterations after which a row is due; None: LATE on CUDA, and 0 elsewhere.
    """

    def __init__(self, device: torch.device, delay: int | None = None) -> None:
        self._device = device
        self._delay = delay if delay is not None else LATE if device.type == "cuda" else 0
        self._rows: deque[Row] = deque()

    def put(self, iteration: int, terms: Tensor) -> None:
        """Begins to copy `terms`, whose place may be written over as soon as the device has done that."""
        here = terms.to("cpu", non_blocking=True, copy=True)  # pinned memory, where it comes from a GPU
        copied = None
        if self._device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        self._rows.append(Row(iteration, here, copied))

    def due(self, iteration: int) -> list[tuple[int, list[float]]]:
        """The rows that are to be read after `iteration`, with their iterations."""
        found = []
        while self._rows and self._rows[0].iteration <= iteration - self._delay:
            found.append(self._read())
        return found

    def rest(self) -> list[tuple[int, list[float]]]:
        """All rows that were not read yet."""
        return [self._read() for _ in range(len(self._rows))]

    def _read(self) -> tuple[int, list[float]]:
        row = self._rows.popleft()
        if row.copied is not None:
            row.copied.synchronize()
        return row.iteration, row.terms.tolist()
