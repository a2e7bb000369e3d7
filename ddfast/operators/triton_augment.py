"""The triton backend of augmentation: one launch each way, around `ddfast.kernels`."""

import torch
from torch import Tensor

from ddfast.kernels.augment import augment_kernel
from ddfast.kernels.tiling import power_of_two
from ddfast.operators.launch import Launch, Spec, on_device, planned, spec
from ddfast.operators.library import implement

DTYPES = (torch.float32, torch.float64)
PIXELS = 512  # of a program: enough for its memory accesses to overlap, few enough for ten classes to fill a chip
MANY = 1024  # images that fill a chip with one program each


@on_device
def augment(images: Tensor, table: Tensor) -> Tensor:
    return _launch(images, table, transpose=False)


@on_device
def augment_backward(grad: Tensor, table: Tensor) -> Tensor:
    return _launch(grad, table, transpose=True)


def _launch(images: Tensor, table: Tensor, transpose: bool) -> Tensor:
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    if images.numel():
        _plan(spec(images), transpose)(images, table, out)
    return out


@planned
def _plan(images: Spec, transpose: bool) -> Launch:
    groups, per_group, channels, height, width = images.shape
    pixels = min(power_of_two(height * width), PIXELS)
    programs = -(-height * width // pixels)
    sharers = 1 if groups * per_group >= MANY else programs
    return Launch(
        augment_kernel,
        (groups * per_group, programs),
        (per_group, sharers, channels, height, width, *images.stride),
        TRANSPOSE=transpose,
        PIXELS=pixels,
        num_warps=4,
    )


for _operator in (augment, augment_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
