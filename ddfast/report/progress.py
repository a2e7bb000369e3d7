"""How far the work is: a bar on a terminal, a plain line now and then anywhere else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10


class Meter:
    """Counts `total` steps of one kind of work."""

    def __init__(self, console: Console, what: str, total: int, begun: int, bar: Progress | None) -> None:
        self._console, self._what, self._total, self._bar = console, what, total, bar
        self._begun = self._done = begun
        self._start = self._last_line = time.monotonic()
        self._task = bar.add_task(what, total=total, completed=begun, note="") if bar else None

    def step(self, note: str = "") -> None:
        """One more step; `note` says what it gave."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            text = f"{self._rate():.2f}/s {note}"
            self._bar.update(self._task, completed=self._done, note=text)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / self._rate()
            line = f"{self._what} {self._done}/{self._total}  {self._rate():.2f}/s  {_clock(left)} left  {note}"
            self._console.print(Text(line.rstrip()), soft_wrap=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Other work, with a meter of its own, that is no part of this one's rate."""
        begun = time.monotonic()
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()
        self._start += time.monotonic() - begun

    def _rate(self) -> float:
        return (self._done - self._begun) / max(time.monotonic() - self._start, 1e-9)


@contextmanager
def meter(console: Console, what: str, total: int, begun: int = 0) -> Iterator[Meter]:
    """A meter for the work of its block, which has `begun` steps behind it."""
    if not console.is_terminal:
        yield Meter(console, what, total, begun, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Meter(console, what, total, begun, bar)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
