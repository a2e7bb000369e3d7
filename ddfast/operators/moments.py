"""The way to class_moments, which has no gradient."""

from torch import Tensor

from ddfast.operators.library import overload
from ddfast.segments import ClassSegments


def class_moments(features: Tensor, segments: ClassSegments, tf32: bool, backend: str | None) -> tuple[Tensor, Tensor]:
    """Means (K, A·B, P) and covariances (K, A·B, A·B) of features (N, A, B, P)."""
    run = overload("class_moments", backend, features)
    return run(features, segments.offsets, segments.index, segments.largest, segments.num_classes, tf32)
