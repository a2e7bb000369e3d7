"""The normalisations a network can have, with what follows them: all of them see one image at a time."""

from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from ddfast.errors import UserError
from ddfast.operators import norm_block

_NORMS = ("instance", "group", "layer", "none")


def normalization(norm: str, channels: int) -> nn.Module:
    """A layer (N, channels, H, W) -> (N, channels, H, W), affine unless it is "none".

    norm: "instance" (a group for every channel), "group" (4 groups), "layer" (1 group) or "none".
    Raises `UserError` for any other, and for channels that 4 groups do not divide.
    """
    if norm == "batch":
        raise UserError("norm must not be 'batch': the features of an image would depend on the chunk it is in")
    if norm not in _NORMS:
        raise UserError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
    if norm == "none":
        return nn.Identity()
    groups = {"instance": channels, "group": 4, "layer": 1}[norm]
    if channels % groups:
        raise UserError(f"width must be a multiple of {groups} for norm {norm!r}, got {channels}")
    return nn.GroupNorm(groups, channels)


def is_instance_norm(norm: nn.Module) -> TypeGuard[nn.GroupNorm]:
    return isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels


def normalized(
    norm: nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
    pool: bool = False,
    fused: bool,
) -> Tensor:
    """norm(x), then the residual's sum, ReLU and 2x2 average pool where asked for.

    fused: in one pass over `x`, if it is an instance norm; the result can then be differentiated once.
    """
    if fused and is_instance_norm(norm):
        return norm_block(x, norm.weight, norm.bias, residual, eps=norm.eps, relu=relu, pool=pool)
    x = norm(x)
    x = x if residual is None else x + residual
    x = F.relu(x, inplace=True) if relu else x
    return F.avg_pool2d(x, 2) if pool else x
