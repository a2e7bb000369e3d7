"""How an iteration is cut into pieces, so that its memory follows a budget and not the number of classes or images."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddfast.data import Dataset
from ddfast.distill.config import Config, parse_bytes
from ddfast.distill.pool import Pool
from ddfast.networks import Network


@dataclass(frozen=True)
class Plan:
    """What is in memory together. Of a partitioned image, all pieces are.

    classes: those that go forward and backward together. real: real images of each of them that are augmented together.
    synthetic: synthetic images of each of them whose activations are kept for backward together. rows: images that go
    through the network together without gradient.
    """

    classes: int
    real: int
    synthetic: int
    rows: int


@dataclass(frozen=True)
class Footprint:
    """Bytes that an image takes in a network: at their peak without gradient, kept for backward, and as features."""

    peak: int = 0
    kept: int = 0
    features: int = 0


def footprint(network: Network, method: str, shape: tuple[int, ...]) -> Footprint:
    """Of one image (C, H, W) under a method of `network`, counted on the meta device, where tensors have no memory."""
    probe = copy.deepcopy(network).to("meta")
    kept: dict[int, Tensor] = {}
    largest = [0]

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor)] = tensor
        return tensor

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest[0] = max(largest[0], sum(map(_bytes, inputs)) + 2 * _bytes(output))

    for module in probe.modules():
        module.register_forward_hook(look)
    image = torch.zeros(1, *shape, dtype=network.head.weight.dtype, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = getattr(probe, method)(image)
    return Footprint(largest[0], sum(map(_bytes, kept.values())), _bytes(features))


def make_plan(config: Config, dataset: Dataset, network: Network, pool: Pool | None, ranks: int = 1) -> Plan:
    """The plan for the budget of `config`, which is that of each of so many ranks.

    A quarter of it is for what is in the network without gradient. The rest holds the activations of the synthetic
    images of as many classes as fit, or of a part of one class beside all of its features; and, at another time, those
    classes' real images with their augmentation and features.
    """
    shape = (dataset.channels, *dataset.size)
    image = 4 * dataset.channels * dataset.size[0] * dataset.size[1]  # of float32
    matching = footprint(network, "embed", shape)
    complexity = footprint(pool.member, "features", shape) if pool else Footprint()
    budget = parse_bytes(config.memory_budget)
    most, pieces = budget * 3 // 4, config.partition**2
    synthetic = pieces * (8 * image + max(matching.kept, complexity.kept))
    own = -(-dataset.num_classes // ranks)  # classes of the rank that has most
    classes = min(max(1, most // (config.ipc * synthetic)), own)
    held = pieces * (2 * image + 4 * max(matching.features, complexity.features))  # where a class goes in parts
    parts = config.ipc if config.ipc * synthetic <= most else max(1, (most - config.ipc * held) // synthetic)
    batch_real = min(config.batch_real, min(dataset.train.counts))
    real = max(1, most // (classes * (5 * image + matching.features)))
    rows = max(1, budget // 4 // max(matching.peak, 1))
    return Plan(classes, _even(batch_real, real), _even(config.ipc, parts), min(rows, classes * batch_real))


def _even(total: int, most: int) -> int:
    """The size of as few equal parts of `total` as have `most` or fewer."""
    return -(-total // -(-total // most))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
