"""Two result folders of one machine: what became slower, beyond what chance and another day's machine can do.

A time counts in units of eager PyTorch in the same rounds, which changes with the machine and not with ddfast.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.intervals import Interval, change
from benchmarks.results import Results

YARDSTICK = "eager"
MARGIN = 0.10  # between two processes the same code differs by a few percent: alignment, pages, neighbours


@dataclass(frozen=True)
class Change:
    name: str
    ratio: Interval  # time after / time before

    @property
    def slower(self) -> bool:
        return self.ratio.low > 1 + MARGIN

    def __str__(self) -> str:
        return f"{self.ratio}  {self.name}{'  SLOWER' if self.slower else ''}"


def changes(before: Results, after: Results) -> Iterator[Change]:
    """Of every backend on every benchmark that both have.

    Raises:
        ValueError: if the two are of different machines or have no benchmark in common.
    """
    machines = [results.environment["machine"] for results in (before, after)]
    if machines[0] != machines[1]:
        raise ValueError(f"results of different machines cannot be compared: {machines[0]} and {machines[1]}")
    common = [
        (key, backend)
        for key in before.groups
        for backend in before.backends(key)
        if all({backend, YARDSTICK} <= set(results.groups.get(key, {})) for results in (before, after))
        and before.groups[key][backend]["scale"] == after.groups[key][backend]["scale"]
    ]
    if not common:
        raise ValueError(f"{before.folder} and {after.folder} have no benchmark in common")
    for key, backend in common:
        pairs = [
            (results.groups[key][backend]["samples"], results.groups[key][YARDSTICK]["samples"])
            for results in (before, after)
        ]
        yield Change(" ".join((*key, backend)), change(*pairs))
