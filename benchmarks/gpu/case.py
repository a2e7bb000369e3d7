"""What a case and a step are: a step is a list of cases, a case is what may fail by itself."""

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]  # what a case found out, as JSON


class Wrong(Exception):
    """A result that is not what it has to be; `found` goes into the record all the same."""

    def __init__(self, message: str, **found: Any) -> None:
        super().__init__(message)
        self.found = found


class NotHere(Exception):
    """A case that cannot run here; its message says why."""


@dataclass(frozen=True)
class Case:
    """limit: seconds after which the case counts as hung, and is killed; None: those of its step."""

    name: str
    run: Callable[[], Record | None]
    limit: float | None = None


@dataclass(frozen=True)
class Given:
    """What a step is given.

    device: where it runs. toy: whether this is a rehearsal, at sizes that a CPU does in seconds. work: a folder that
    all steps share; below `work`/kept lies what goes into the archive. seconds: what the step may take. again: the
    names of cases that failed before. beside: how many worker processes are at work at a time.
    """

    device: torch.device
    toy: bool
    work: Path
    seconds: float
    again: tuple[str, ...] = ()
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.begun + self.seconds - time.monotonic()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def kept(self) -> Path:
        folder = self.work / "kept"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def pick(self, full: Any, toy: Any) -> Any:
        return toy if self.toy else full


@dataclass(frozen=True)
class Step:
    """A part of a command, and how it shares its time.

    cases: "module:function", which takes a `Given` and yields the cases. wish: seconds of its share when 300 are given
    in all. least: seconds under which it is not begun. limit: seconds of a case. grace: seconds that it may take beyond
    its own before it is ended. extra: it takes what the others leave, so that they keep nothing for it. beside: it goes
    on in the background while the next steps run. after: steps in the background that it waits for. needs: "cuda", or a
    program. why: what it is for.
    """

    name: str
    cases: str
    wish: float
    least: float = 5.0
    limit: float = 30.0
    grace: float = 3.0
    extra: bool = False
    beside: bool = False
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    why: str = ""

    def load(self) -> Callable[[Given], Iterator[Case]]:
        module, _, function = self.cases.partition(":")
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def is_wrong(record: Record) -> bool:
    """Whether a record says that something is broken."""
    return record["status"] in ("failed", "died", "hung")
