"""The normalisations a network can have: all of them see one image at a time."""

from torch import nn

from ddfast.errors import UserError

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
