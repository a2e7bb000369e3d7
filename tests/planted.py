"""Cases that do what no case should: what tests/test_gpu.py has a session survive."""

import os
import signal
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu.case import Case, Given, NotHere, Record, Wrong


def cases(given: Given) -> Iterator[Case]:
    yield Case("first", lambda: {"found": 1})
    yield Case("raises", _raise)
    yield Case("is wrong", _wrong)
    yield Case("cannot run here", _refuse)
    yield Case("kills itself", lambda: os.kill(os.getpid(), signal.SIGKILL))
    yield Case("after the kill", lambda: {"process": os.getpid()})
    yield Case("hangs", lambda: time.sleep(1000), limit=1)
    yield Case("after the hang", lambda: {"process": os.getpid()})
    yield Case("breaks CUDA", _poison)
    yield Case("after the broken CUDA", lambda: {"process": os.getpid()})
    yield Case("exits", lambda: os._exit(3))
    yield Case("last", lambda: {"found": 2})


def _raise() -> Record:
    raise ZeroDivisionError("planted")


def _wrong() -> Record:
    raise Wrong("not what it has to be", number=3)


def _refuse() -> Record:
    raise NotHere("a reason")


def _poison() -> Record:
    """From now on this process is as one whose CUDA context an error stays with."""
    sys.modules["__main__"].fit = lambda device: False  # type: ignore[attr-defined]
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def slow(given: Given) -> Iterator[Case]:
    for number in range(100):
        yield Case(f"slow {number}", lambda: time.sleep(0.2))


def unpreparable(given: Given) -> Iterator[Case]:
    yield Case("only", lambda: None)
    raise ValueError("planted in between")


def dead_at_import(given: Given) -> Iterator[Case]:
    os._exit(4)


def good(given: Given) -> Iterator[Case]:
    (given.kept / "good.txt").write_text("kept")
    yield Case("good", lambda: {"left": given.left})
