"""The published protocol (DM and DSA's code): several fresh networks, a fixed schedule, one test at the end of each.

Nothing here touches the state of a run: every random number is keyed by the seed and the number of the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfast import keyed
from ddfast.augment import parse_strategy
from ddfast.data import Dataset
from ddfast.partition import expand
from ddfast.ranks import ALONE, Ranks
from ddfast.training import BATCH, Tick, accuracy, build_network, optimizer, train_epoch

LR = 0.01


@dataclass(frozen=True)
class Protocol:
    """What is trained, on nothing but the images in question.

    partition: pieces along each side of an image; each piece, enlarged, is a training image. epochs: E; the loop runs
    E + 1 times, E // 2 + 2 of them at learning rate 0.01 and the rest at a tenth of it, with a new optimizer and so
    without momentum at the drop. repeats: networks for each set of images.
    """

    network: str = "convnet"
    width: int | None = None
    depth: int | None = None
    norm: str | None = None
    activation: str | None = None
    pooling: str | None = None
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    partition: int = 1
    epochs: int = 1000
    repeats: int = 5
    seed: int = 0


def steps(protocol: Protocol, count: int, epochs: int, ranks: Ranks = ALONE) -> int:
    """Optimizer steps of this rank's networks on `count` images."""
    return len(ranks.turns(protocol.repeats)) * (epochs + 1) * -(-count // BATCH)


def evaluate_images(
    images: Tensor, labels: Tensor, dataset: Dataset, protocol: Protocol, tick: Tick, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Accuracies in percent of networks trained on normalised float images (N, C, H, W) with labels (N,) or (N, K).

    Each of several ranks trains some of the networks, and all get the same result.
    """
    pieces = protocol.partition**2
    expanded = expand(images, protocol.partition), labels.repeat(pieces, *(1,) * (labels.ndim - 1))
    return _repeat(lambda repeat: expanded, len(images), lambda x: x, protocol.epochs, dataset, protocol, tick, ranks)


def evaluate_random(
    counts: Sequence[int], dataset: Dataset, protocol: Protocol, tick: Tick, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """... on so many random training images of each class, drawn anew for each network."""
    device = dataset.train.labels.device
    classes, most = torch.arange(dataset.num_classes, device=device), max(counts)
    wanted = torch.arange(most, device=device) < torch.tensor(counts, device=device)[:, None]  # (K, most)

    def draw(repeat: int) -> tuple[Tensor, Tensor]:
        scores = keyed.bits(protocol.seed, repeat, classes, "random images", max(dataset.train.counts))
        rows = dataset.train.choose(classes, most, scores)[wanted]
        return dataset.train.images[rows], dataset.train.labels[rows]

    return _repeat(draw, sum(counts), dataset.normalise, protocol.epochs, dataset, protocol, tick, ranks)


def evaluate_whole(
    dataset: Dataset, epochs: int, protocol: Protocol, tick: Tick, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """... on the whole training set, for `epochs`."""
    split = dataset.train
    whole = (split.images, split.labels)
    return _repeat(lambda repeat: whole, len(split.images), dataset.normalise, epochs, dataset, protocol, tick, ranks)


def _repeat(
    draw: Callable[[int], tuple[Tensor, Tensor]],
    count: int,
    prepare: Callable[[Tensor], Tensor],
    epochs: int,
    dataset: Dataset,
    protocol: Protocol,
    tick: Tick,
    ranks: Ranks,
) -> dict[str, Any]:
    """Trains and tests every network; mean and deviation (ddof 0) over them."""

    def own() -> list[tuple[float, list[float | None]]]:
        turns = ranks.turns(protocol.repeats)
        return [_one(*draw(repeat), prepare, epochs, dataset, protocol, repeat, tick) for repeat in turns]

    by_rank = ranks.shared(own)
    results = [by_rank[repeat % ranks.size][repeat // ranks.size] for repeat in range(protocol.repeats)]
    runs = [run for run, _ in results]
    by_class = zip(*(per_class for _, per_class in results), strict=True)
    return {
        "mean": float(np.mean(runs)),
        "std": float(np.std(runs)),
        "runs": runs,
        "images": count,
        "network": protocol.network,
        "epochs": epochs,
        "per_class": [None if values[0] is None else float(np.mean(values)) for values in by_class],
    }


def _one(
    images: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    epochs: int,
    dataset: Dataset,
    protocol: Protocol,
    repeat: int,
    tick: Tick,
) -> tuple[float, list[float | None]]:
    generator = keyed.generator(protocol.seed, repeat, "evaluation network", images.device)
    network = build_network(protocol, dataset, generator)
    shuffle = keyed.generator(protocol.seed, repeat, "evaluation batches", torch.device("cpu"))
    strategy = parse_strategy(protocol.augmentation)
    sgd = optimizer(network, LR)
    for epoch in range(epochs + 1):
        if epoch == epochs // 2 + 2:
            sgd = optimizer(network, LR / 10)
        train_epoch(network, sgd, images, labels, prepare=prepare, strategy=strategy, generator=shuffle, tick=tick)
    return accuracy(network, dataset)
