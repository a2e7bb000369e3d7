"""The rows of an evaluation: random real images, the distilled ones, the whole training set."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ddfast.data import Dataset
from ddfast.evaluate.protocol import Protocol, evaluate_images, evaluate_random, evaluate_whole, steps
from ddfast.ranks import ALONE, Ranks
from ddfast.report.progress import meter
from ddfast.signals import Stop
from ddfast.training import Tick

Result = dict[str, Any]


def evaluate_distilled(
    images: Tensor,
    labels: Tensor,
    dataset: Dataset,
    protocol: Protocol,
    console: Console,
    stop: Stop,
    ranks: Ranks = ALONE,
) -> Result:
    """Normalised images (N, C, H, W) and their labels (N,), with progress."""
    total = steps(protocol, protocol.partition**2 * len(images), protocol.epochs, ranks)
    return _timed(
        "distilled", total, console, stop, lambda tick: evaluate_images(images, labels, dataset, protocol, tick, ranks)
    )


def evaluate_baseline(
    counts: Sequence[int],
    dataset: Dataset,
    protocol: Protocol,
    console: Console,
    stop: Stop,
    ranks: Ranks = ALONE,
) -> Result:
    """So many random real images of each class, with progress."""
    total = steps(protocol, sum(counts), protocol.epochs, ranks)
    return _timed("random", total, console, stop, lambda tick: evaluate_random(counts, dataset, protocol, tick, ranks))


def evaluate_all(
    images: Tensor,
    labels: Tensor,
    dataset: Dataset,
    protocol: Protocol,
    whole_epochs: int,
    console: Console,
    stop: Stop,
    ranks: Ranks = ALONE,
) -> dict[str, Result]:
    """Every row that applies: no random one if a class has too few images, no whole one for 0 epochs.

    images, labels: the same on all ranks, which share the work and get the same table.
    """
    table = {}
    hard = labels if labels.ndim == 1 else labels.argmax(1)
    counts = torch.bincount(hard, minlength=dataset.num_classes).tolist()
    if max(counts) <= min(dataset.train.counts):
        table["random"] = evaluate_baseline(counts, dataset, protocol, console, stop, ranks)
    table["distilled"] = evaluate_distilled(images, labels, dataset, protocol, console, stop, ranks)
    if whole_epochs:
        total = steps(protocol, len(dataset.train.labels), whole_epochs, ranks)
        table["whole"] = _timed(
            "whole", total, console, stop, lambda tick: evaluate_whole(dataset, whole_epochs, protocol, tick, ranks)
        )
    return table


def _timed(what: str, total: int, console: Console, stop: Stop, work: Callable[[Tick], Result]) -> Result:
    begun = time.monotonic()
    with meter(console, f"evaluate {what}", total) as bar:

        def tick() -> None:
            bar.step()
            stop.check()

        result = work(tick)
    return {**result, "seconds": round(time.monotonic() - begun, 3)}
