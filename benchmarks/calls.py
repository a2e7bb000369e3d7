"""The operators on tensors that have no memory: what a GPU would be asked to launch for them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import Workload
from ddfast.operators import triton_augment, triton_blocks, triton_complexity, triton_matching
from ddfast.operators.schemas import TABLE, accumulator

Call = Callable[[], Any]

IMAGES = 256  # of a class
NORMS = {  # channels, height and width of the map; whether it is pooled, or else has a residual
    "convnet 128x16x16": (128, 16, True),
    "convnet 128x8x8": (128, 8, True),
    "resnet18 64x32x32": (64, 32, False),
    "resnet18 128x16x16": (128, 16, False),
    "resnet18 256x8x8": (256, 8, False),
    "resnet18 512x4x4": (512, 4, False),
}
CONVS = {  # channels, height and width of the images, padding; to the 128 channels of a ConvNet
    "convnet 3x32x32": (3, 32, 1),
    "convnet 3x64x64": (3, 64, 1),
    "convnet 1x28x28": (1, 28, 3),
}
LAYOUTS = {torch.contiguous_format: "", torch.channels_last: ", channels_last"}


def losses(workload: Workload, dtype: torch.dtype) -> Iterator[Call]:
    """Those of a workload and its augmentation, forward and backward."""
    wide = accumulator(dtype)
    d, p = workload.descriptors
    shape = (d // workload.row[1], workload.row[1], p) if workload.local == "rows" else (d, 1, p)
    k, ipc = workload.classes, workload.ipc
    real, syn = (_empty(k * rows, *shape, dtype=dtype) for rows in (workload.real, ipc))
    side = (None, None, ipc, k)
    gaps = [_empty(*size, dtype=wide) for size in ((k,), (k, d, p), (k, d, p), (k, d, p), (k, d, d))]
    grad = _empty(dtype=wide)
    yield lambda: triton_matching.moment_matching(real, None, None, workload.real, syn, *side, 1.0, 0.01, False, True)
    yield lambda: triton_matching.moment_matching_backward(grad, syn, *side, *gaps, 1.0, 0.01, False)
    yield lambda: triton_matching.class_moments(real, None, None, workload.real, k, False)
    rows = _empty(k * ipc, workload.width, dtype=dtype)
    weights = (0.05, 1.0, None, 0.0, "batchmean")
    yield lambda: triton_complexity.class_complexity(rows, *side, *weights, True)
    state = [_empty(k, workload.width, dtype=wide) for _ in range(3)]
    yield lambda: triton_complexity.class_complexity_backward(grad, rows, *side, *state, *weights)
    if dtype in triton_augment.DTYPES:
        images, table = _empty(k, ipc, *workload.image, dtype=dtype), _empty(k, TABLE, dtype=torch.float64)
        yield lambda: triton_augment.augment(images, table)
        yield lambda: triton_augment.augment_backward(images, table)


def blocks(dtype: torch.dtype) -> Iterator[tuple[str, list[Call]]]:
    """By name, forward and backward, the blocks of a ConvNet and those of ResNet-18 that move the most."""
    for layout, suffix in LAYOUTS.items():
        for name, (channels, side, pool) in NORMS.items():
            yield name + suffix, list(_norm(channels, side, pool, dtype, layout))
        for name, (channels, side, padding) in CONVS.items():
            yield name + suffix, list(_conv(channels, side, padding, dtype, layout))


def _norm(channels: int, side: int, pool: bool, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Call]:
    x = _empty(IMAGES, channels, side, side, dtype=dtype, memory_format=layout)
    half = side // 2 if pool else side
    grad = _empty(IMAGES, channels, half, half, dtype=dtype, memory_format=layout)
    given = (x, *_affine(channels, dtype), None if pool else x)
    yield lambda: triton_blocks.norm_block(*given, 1e-5, True, pool, True)
    statistics = _statistics(channels, dtype)
    yield lambda: triton_blocks.norm_block_backward(grad, *given, *statistics, True, pool, True, not pool)


def _conv(channels: int, side: int, padding: int, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Call]:
    images = _empty(IMAGES, channels, side, side, dtype=dtype, memory_format=layout)
    half = (side + 2 * padding - 2) // 2
    grad = _empty(IMAGES, 128, half, half, dtype=dtype, memory_format=layout)
    given = (images, _empty(128, channels, 3, 3, dtype=dtype), *_affine(128, dtype))
    yield lambda: triton_blocks.conv_block(*given, padding, 1e-5, True)
    statistics = _statistics(128, dtype)
    yield lambda: triton_blocks.conv_block_backward(grad, *given, *statistics, padding)


def _affine(channels: int, dtype: torch.dtype) -> list[Tensor]:
    return [_empty(channels, dtype=accumulator(dtype)) for _ in range(2)]


def _statistics(channels: int, dtype: torch.dtype) -> list[Tensor]:
    return [_empty(IMAGES, channels, dtype=accumulator(dtype)) for _ in range(2)]


def _empty(*size: int, **options: Any) -> Tensor:
    return torch.empty(size, device="meta", **options)
