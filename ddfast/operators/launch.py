"""What every launch of a Triton kernel needs to know of the device."""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddfast.kernels.tiling import Chip


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a CUDA device; for the interpreter, which runs one program after the other, a small H100."""
    if device.type != "cuda":
        return Chip(90, 8)
    properties = torch.cuda.get_device_properties(device)
    name = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    return Chip(10 * properties.major + properties.minor, properties.multi_processor_count, name)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Launches go to the device of the tensors, whichever is the current one."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if device.type != "cuda":
            return function(*args)
        with torch.cuda.device(device):
            return function(*args)

    return run
