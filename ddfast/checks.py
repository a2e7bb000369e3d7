"""What the public functions ask of their arguments; every refusal names the argument, what was expected, what came."""

import math
from typing import Any

import torch
from torch import Tensor

from ddfast.segments import ClassSegments

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def floats(name: str, tensor: Any) -> None:
    """A tensor of a dtype the operators have."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")


def same(name: str, tensor: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """Two sides of one dtype and one device."""
    if dtype and tensor.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")


def one_of(name: str, value: Any, options: tuple[Any, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def form(name: str, features: Tensor, local: str) -> tuple[int, ...]:
    """The shape in which the operators read matching features: (N, A, B, P), A·B local descriptors at P positions."""
    floats(name, features)
    one_of("local", local, ("channels", "rows"))
    shape = features.shape
    if local == "rows":
        if len(shape) != 4:
            raise ValueError(f'{name} must have shape (N, C, H, W) for local="rows", got {tuple(shape)}')
        return tuple(shape)
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"{name} must have shape (N, C, H, W), (N, C, P) or (N, E), got {tuple(shape)}")
    return shape[0], shape[1], 1, math.prod(shape[2:])


def maps(name: str, features: Tensor, local: str) -> Tensor:
    """Matching features as the operators read them; a copy only where their positions do not lie evenly."""
    return features.reshape(form(name, features, local))


def rows(name: str, features: Tensor) -> None:
    """Complexity features (N, E)."""
    floats(name, features)
    if features.ndim != 2:
        raise ValueError(f"{name} must have shape (N, E), got {tuple(features.shape)}")


def segments_of(name: str, segments: ClassSegments | None, features: Tensor) -> ClassSegments:
    """The segments of `features`; without any, all rows are one class."""
    if segments is None:
        return ClassSegments(1, features.shape[0], features.shape[0])
    if not isinstance(segments, ClassSegments):
        raise TypeError(f"{name} must be a ClassSegments, got {type(segments).__name__}")
    if segments.num_rows != features.shape[0]:
        raise ValueError(f"{name} must describe the {len(features)} rows of the features, got {segments.num_rows} rows")
    if segments.offsets is not None and segments.offsets.device != features.device:
        raise ValueError(
            f"{name} must be on the device of the features, {features.device}, got {segments.offsets.device}"
        )
    return segments


def real_features(
    name: str, real: Tensor, segments: ClassSegments | None, syn: Tensor, syn_segments: ClassSegments, local: str
) -> tuple[Any, ...]:
    """The real side as features: its maps, detached, and its segments, as the operator takes them."""
    shape = form(name, real, local)
    features = (real.detach() if real.requires_grad else real).reshape(shape)
    same("syn", syn, name, real)
    if real.shape[1:] != syn.shape[1:]:
        raise ValueError(
            f"syn must have the feature shape of {name}, {tuple(real.shape[1:])}, got {tuple(syn.shape[1:])}"
        )
    side = segments_of("real_segments", segments, real)
    _same_classes(side.num_classes, "real_segments", syn_segments)
    return features, side.offsets, side.index, side.largest


def moments(
    name: str,
    real: Any,
    segments: ClassSegments | None,
    syn: Tensor,
    form: tuple[int, ...],
    syn_segments: ClassSegments,
    local: str,
) -> tuple[Any, ...]:
    """The real side as ClassMoments, which know their classes."""
    if segments is not None:
        raise ValueError(f"real_segments must be None where {name} is a ClassMoments, which knows its classes")
    if real.local != local:
        raise ValueError(f'{name} must have been computed with local="{local}", got moments of local="{real.local}"')
    same("syn", syn, name, real.means, dtype=False)
    _, a, b, positions = form
    if real.means.shape[1:] != (a * b, positions):
        raise ValueError(
            f"syn must have the features of {name}, {tuple(real.means.shape[1:])}, got {(a * b, positions)}"
        )
    _same_classes(real.num_classes, name, syn_segments)
    return real.counts, real.means, real.covariances


def _same_classes(num_classes: int, name: str, syn_segments: ClassSegments) -> None:
    if num_classes != syn_segments.num_classes:
        raise ValueError(f"syn_segments must have the {num_classes} classes of {name}, got {syn_segments.num_classes}")
