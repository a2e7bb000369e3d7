"""Ctrl-C and SIGTERM as a request that the work in hand grants where its state is whole."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The user asked the run to stop; the exit code is that of a process ended by the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


class Stop:
    """Within its block the first signal is only noted, for `check` to raise.

    Args:
        again: what a second one meets; it ends the process at once, unless that is SIG_IGN.
    """

    def __init__(self, again: signal.Handlers = signal.SIG_DFL) -> None:
        self.signum, self._again = 0, again  # the number is of the signal that came, if one did

    def __enter__(self) -> "Stop":
        self._before = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signum, self._again)

    def check(self) -> None:
        if self.signum:
            raise Interrupted(self.signum)
