"""Medians, their ratios, and how far chance could have moved them: percentile bootstrap, always with the same draws."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(over: ArrayLike, under: ArrayLike, confidence: float = 0.95) -> Interval:
    """median(over) / median(under) of samples taken in the same rounds: a round is drawn with both its samples."""
    over, under = np.asarray(over, float), np.asarray(under, float)
    return _interval(np.median(over) / np.median(under), _ratios(over, under, seed=0), confidence)


def change(
    before: tuple[ArrayLike, ArrayLike], after: tuple[ArrayLike, ArrayLike], confidence: float = 0.99
) -> Interval:
    """How a ratio changed from one run to another; each is (over, under), taken in the same rounds of its run."""
    value = _median_ratio(*after) / _median_ratio(*before)
    draws = _ratios(*map(np.asarray, after), seed=1) / _ratios(*map(np.asarray, before), seed=2)
    return _interval(value, draws, confidence)


def median(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    return ratio(samples, np.ones_like(np.asarray(samples, float)), confidence)


def _median_ratio(over: ArrayLike, under: ArrayLike) -> float:
    return float(np.median(np.asarray(over)) / np.median(np.asarray(under)))


def _ratios(over: NDArray, under: NDArray, seed: int) -> NDArray:
    rounds = np.random.default_rng(seed).integers(len(over), size=(DRAWS, len(over)))
    return np.median(over[rounds], axis=1) / np.median(under[rounds], axis=1)


def _interval(value: float, draws: NDArray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))
