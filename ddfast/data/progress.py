"""How loading says what takes its time, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Is told how the work goes, and keeps it to itself; a subclass passes it on."""

    def say(self, line: str) -> None:
        """Something that the user should know."""

    @contextmanager
    def meter(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """For a block of `total` steps, each a call of what it yields."""
        yield lambda: None
