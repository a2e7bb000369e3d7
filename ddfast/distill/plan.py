"""How a run is cut into chunks, so that its memory follows a budget and not the number of classes."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddfast.networks import Network


@dataclass(frozen=True)
class Plan:
    """Classes that go forward and backward together, and real images that go through the network together."""

    classes: int
    rows: int


def footprint(network: Network, method: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes of activations of one image (C, H, W) under a method of `network`: at their peak without gradient, and kept
    for backward with it.

    They are counted on the meta device, where tensors have sizes and no memory.
    """
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
        getattr(probe, method)(image)
    return largest[0], sum(map(_bytes, kept.values()))


def make_plan(
    budget: int,
    *,
    shape: tuple[int, ...],
    ipc: int,
    batch_real: int,
    matching: tuple[int, int],
    complexity: tuple[int, int],
) -> Plan:
    """The plan for a budget in bytes; `matching` and `complexity` are the footprints of their networks.

    A quarter of the budget is for the real images that are in the network, the rest for a chunk of classes: its real
    images and their augmentation, or the activations of its synthetic ones, of whichever network keeps more.
    """
    image = 4 * shape[0] * shape[1] * shape[2]
    rows = max(1, budget // 4 // max(matching[0], 1))
    per_class = batch_real * 4 * image + ipc * (8 * image + max(matching[1], complexity[1]))
    return Plan(max(1, budget * 3 // 4 // per_class), min(rows, batch_real))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
