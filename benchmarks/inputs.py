"""Inputs of a workload, the same for the same seed and device."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.workloads import Workload
from tests.oracle import Batch


def matching(workload: Workload, device: torch.device, seed: int) -> Batch:
    """Feature maps of both sides."""
    return _batch(workload, workload.row, workload.real, device, seed)


def complexity(workload: Workload, device: torch.device, seed: int) -> Batch:
    """Flat features of the synthetic side."""
    return _batch(workload, (workload.width,), 0, device, seed)


def images(workload: Workload, device: torch.device, seed: int) -> Batch:
    """Images of both sides."""
    return _batch(workload, workload.image, workload.real, device, seed)


def _batch(workload: Workload, row: tuple[int, ...], real: int, device: torch.device, seed: int) -> Batch:
    """Features as after a ReLU: not negative, their mean about as large as their spread, classes apart."""
    normal = partial(torch.randn, generator=torch.Generator(device).manual_seed(seed), device=device)
    classes = workload.classes
    centre = 0.5 + 0.5 * normal(classes, 1, *row)

    def features(per_class: int, shift: float) -> Tensor:
        return normal(classes, per_class, *row).add_(centre).add_(shift).relu_().flatten(0, 1)

    def labels(per_class: int) -> Tensor:
        return torch.arange(classes, device=device).repeat_interleave(per_class)

    syn = features(workload.ipc, 0.1)
    return Batch(features(real, 0.0), labels(real), syn, labels(workload.ipc), classes, uniform=True)
