"""Hands samples that were taken in turns to pytest-benchmark, as a clock that each round moves on by one of them."""

from collections.abc import Sequence
from typing import Any

import pytest

_now = 0.0


def _clock() -> float:
    return _now


def hand_over(benchmark: Any, samples: Sequence[float]) -> None:
    """To a benchmark that is `replayed`."""
    remaining = iter(samples)

    def move_on() -> None:
        global _now
        _now += next(remaining)

    benchmark.pedantic(move_on, rounds=len(samples))


replayed = pytest.mark.benchmark(timer=_clock)
