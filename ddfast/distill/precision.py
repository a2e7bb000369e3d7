"""The arithmetic of the networks in an iteration: float32, float32 with TF32 convolutions on CUDA, or bfloat16.

Images, their gradient and their momentum are float32 always, and the losses sum in float32 whatever the features are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ddfast.errors import UserError
from ddfast.networks import Network

PRECISIONS = ("float32", "tf32", "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuses an unknown one, and what the device does not have."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"precision tf32 needs a CUDA device, got {device}: there is float32 or bf16")


def convert(network: Network, precision: str, device: torch.device) -> Network:
    """`network` itself, laid for that precision and with its weights."""
    lay(network, precision, device)
    return network.to(torch.bfloat16) if precision == "bf16" else network


def lay(network: Network, precision: str, device: torch.device) -> None:
    """For a CUDA device: kernels and maps as its tensor cores read them, where they have a part in it."""
    if device.type == "cuda":
        network.lay(torch.contiguous_format if precision == "float32" else torch.channels_last)


def dtype_of(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def to_network(images: Tensor, network: Network) -> Tensor:
    """Images (..., C, H, W) as rows (N, C, H, W) of the dtype that `network` computes in."""
    return images.flatten(0, -4).to(network.head.weight.dtype)


@contextmanager
def convolutions(precision: str) -> Iterator[None]:
    """cuDNN's convolutions of float32 are of that precision inside, whatever PyTorch's flag says outside."""
    flags = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, flags.fp32_precision = flags.fp32_precision, "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        flags.fp32_precision = before
