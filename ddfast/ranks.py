"""The processes that torchrun starts for one run, its ranks: who does what, what they tell each other, how they end.

What the host knows travels by gloo, images and networks on GPUs by NCCL. Numbers are added up in the order of ranks, so
that the same ranks give the same bits. A rank that is gone closes its connections: to all others, what they do together
next raises `RankLost`.
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ddfast.errors import RankLost
from ddfast.signals import Interrupted, Stop

T = TypeVar("T")

_LONGEST = timedelta(days=30)  # that one works while the others wait: a network of a pool may take a day
_PATIENCE = 10  # seconds for the first rank's last words


class Ranks:
    """One rank among `size`, the first of which alone writes into a run folder and talks.

    Args:
        rank, size: the number of this process, and of how many.
        local: its number on this machine, which is that of its GPU.
        store: where torchrun keeps words for all ranks, those that are gone too.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: dist.Store | None = None) -> None:
        self.rank, self.size, self.local, self._store = rank, size, local, store

    @classmethod
    def join(cls) -> "Ranks":
        """This process among those of its torchrun, once all are there; without torchrun it is alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
            return ALONE
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _end)
        return cls(rank, size, int(os.environ["LOCAL_RANK"]), dist.PrefixStore("ddfast", store))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def parts(self, count: int, each: int = 1) -> list[slice]:
        """The rows of every rank, where `count` things of `each` rows are cut into a run of things for each."""
        bounds = [each * (rank * count // self.size) for rank in range(self.size + 1)]
        return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]

    def turns(self, count: int) -> range:
        """Which of `count` things, dealt one by one, are this rank's."""
        return range(self.rank, count, self.size)

    def meet(self) -> None:
        """Waits until every rank is here, with all that it gave its GPU done.

        Before NCCL has ranks wait for each other: where one is gone, gloo says so and NCCL waits for ever.
        """
        if self.size > 1 and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.table((0,))

    def stop(self) -> Stop:
        """For a command's work. A rank ignores a second signal: whoever signals a whole job, torchrun and its ranks,
        reaches a rank twice, and torchrun kills what has not ended after half a minute.
        """
        return Stop(signal.SIG_DFL if self.size == 1 else signal.SIG_IGN)

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """The block is the first rank's, and once that is through it all others' at once."""
        if not self.first:
            self.meet()
        yield
        if self.first:
            self.meet()

    def table(self, row: Sequence[float]) -> Tensor:
        """Every rank's numbers, one or more and as many from each: (size, n) float64 on the host."""
        mine = torch.tensor(row, dtype=torch.float64)
        if self.size == 1:
            return mine[None]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with self._others():
            dist.all_gather(rows, mine)
        return torch.stack(rows)

    def told(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, which alone does it."""
        found: list[Any] = [work() if self.first else None]
        if self.size > 1:
            with self._others():
                dist.broadcast_object_list(found, src=0)
        return found[0]

    def shared(self, work: Callable[[], T]) -> list[T]:
        """What every rank's `work` gives, by rank. Where one was stopped in it, all are."""
        if self.size == 1:
            return [work()]
        mine: tuple[T | None, int] = None, 0
        try:
            mine = work(), 0
        except Interrupted as stopped:
            mine = None, stopped.signum
        found: list[Any] = [None] * self.size
        with self._others():
            dist.all_gather_object(found, mine)
        signum = max(signum for _, signum in found)
        if signum:
            raise Interrupted(signum)
        return [result for result, _ in found]

    def joined(self, mine: Tensor, parts: Sequence[slice]) -> Tensor:
        """The rows of all ranks, where `parts` says, on every rank and where `mine` is."""
        if self.size == 1:
            return mine
        whole = mine.new_empty(parts[-1].stop, *mine.shape[1:])
        whole[parts[self.rank]] = mine
        for source, rows in enumerate(parts):
            self.spread(whole[rows], source)
        return whole

    def collected(self, mine: Tensor, parts: Sequence[slice]) -> Tensor:
        """... on the first rank, and in the host's memory; elsewhere `mine` as it is."""
        if self.size == 1:
            return mine
        own = mine.cpu()
        if not self.first:
            with self._others():
                dist.send(own, 0)
            return mine
        whole = own.new_empty(parts[-1].stop, *own.shape[1:])
        whole[parts[0]] = own
        with self._others():
            for source, rows in enumerate(parts[1:], 1):
                dist.recv(whole[rows], source)
        return whole

    def spread(self, tensor: Tensor, source: int) -> None:
        """Puts what the rank `source` has in `tensor`, which is contiguous, into that of every rank."""
        if self.size > 1:
            with self._others():
                dist.broadcast(tensor, source)

    @contextmanager
    def _others(self) -> Iterator[None]:
        """Something that takes all ranks. What a GPU has to complain of is this rank's own matter."""
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:
            raise RankLost(self._reason(error)) from error

    def _reason(self, error: RuntimeError) -> str:
        """What the rank that is gone left behind, or else what its connection says."""
        try:
            if self._store is not None and self._store.check(["failed"]):
                return self._store.get("failed").decode()
        except RuntimeError:
            pass  # torchrun is gone as well
        return f"a rank is gone ({str(error).split('] ')[1 if '] ' in str(error) else 0].split('. ')[0]})"

    def close(self) -> None:
        """Parts from the others in peace."""
        if self.size > 1:
            dist.destroy_process_group()

    def leave(self, line: str, lost: bool, say: Callable[[str], None]) -> None:
        """Ends this rank's part in a run that cannot go on, and has one of all ranks `say` why.

        That is the first: it learns of what happened to another by the connection that this closes. The others stay
        until it has spoken, for torchrun ends all ranks with the first one that ends. If it stays silent, the quickest
        of them speaks.

        lost: whether the trouble is another rank's.
        """
        if self._store is None:
            return say(line)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        try:
            if not self.first:
                self._wait(None if lost else f"rank {self.rank}: {line}")
            if self._store.compare_set("speaks", "", str(self.rank)) != str(self.rank).encode():
                return None
        except RuntimeError:
            pass  # torchrun is gone as well
        say(line if self.first else f"rank {self.rank}: {line}")
        with suppress(RuntimeError):
            self._store.set("said", "")
        return None

    def _wait(self, failed: str | None) -> None:
        """Leaves `failed` behind and the connections, and waits for the first rank's words."""
        assert self._store is not None
        if failed:
            self._store.compare_set("failed", "", failed)
        dist.destroy_process_group()
        for _ in range(_PATIENCE * 20):
            if self._store.check(["said"]):
                return
            time.sleep(0.05)


def _end(signum: int, frame: FrameType | None) -> None:
    """Ends a rank that is not at work yet, or not any more."""
    if signum == signal.SIGTERM:
        raise RankLost("torchrun ended the rank, as it does when it is told to or another rank is gone")
    raise Interrupted(signum)


ALONE = Ranks()
