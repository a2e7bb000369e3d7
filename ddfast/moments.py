"""Means and local covariances of every class: the constant side of moment matching, mergeable over chunks and ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddfast import checks, operators
from ddfast.segments import ClassSegments


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Counts, means and centred second moments of the features of every class; no gradient.

    Attributes:
        counts: (K,) int64, rows of each class.
        means: (K, C, P) float32 or float64; for local="rows" C stands for C·H and P for W. Zeros for an empty class.
        covariances: (K, C, C) of the same dtype: sum_n (F_n − M)(F_n − M)^T / N. Zeros for an empty class.
        local: "channels" or "rows", what a local descriptor is.
    """

    counts: Tensor
    means: Tensor
    covariances: Tensor
    local: str = "channels"

    @staticmethod
    def from_features(
        features: Tensor,
        segments: ClassSegments | None = None,
        local: str = "channels",
        *,
        precision: str | None = None,
        backend: str | None = None,
    ) -> "ClassMoments":
        """The moments of features (N, C, H, W), (N, C, P) or (N, E), float32, float64, bfloat16 or float16.

        Args:
            features: read as it lies; float64 gives float64 moments, every other dtype float32 ones.
            segments: the class of every row; by default all rows are one class.
            local: "channels" (local descriptors are channels) or "rows" (channels by rows, for (N, C, H, W) alone).
            precision: None for float32 accuracy, "tf32" to allow TF32 products.
            backend: the implementation, by default the fastest that runs here.

        Raises:
            TypeError, ValueError: if an argument is not as said here; NotImplementedError if `backend` cannot run here.
        """
        maps = checks.maps("features", features, local).detach()
        checks.one_of("precision", precision, (None, "tf32"))
        segments = checks.segments_of("segments", segments, features)
        means, covariances = operators.class_moments(maps, segments, precision == "tf32", backend)
        return ClassMoments(segments.counts(features.device), means, covariances, local)

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """The moments of both sets of rows together (Chan, Golub and LeVeque, 1983); equals the whole to rounding.

        Raises:
            TypeError: if `other` is not a ClassMoments.
            ValueError: if `other` has another shape, dtype, device or `local`.
        """
        if not isinstance(other, ClassMoments):
            raise TypeError(f"other must be a ClassMoments, got {type(other).__name__}")
        for name in ("shape", "dtype", "device"):
            mine, theirs = getattr(self.means, name), getattr(other.means, name)
            if mine != theirs:
                raise ValueError(f"other must have means of {name} {mine}, got {theirs}")
        if self.local != other.local:
            raise ValueError(f"other must have local={self.local!r}, got {other.local!r}")
        counts = self.counts + other.counts
        total = counts.clamp(min=1)
        share = (other.counts.double() / total).to(self.means.dtype)[:, None, None]
        gap = other.means - self.means  # (K, C, P)
        wide = gap.double()  # neither autocast nor the TF32 flags touch a float64 product
        between = share * (1 - share) * (wide @ wide.transpose(1, 2)).to(gap.dtype)  # (K, C, C)
        covariances = (1 - share) * self.covariances + share * other.covariances + between
        return ClassMoments(counts, self.means + share * gap, covariances, self.local)

    def to(self, device: torch.device | str) -> "ClassMoments":
        """The same moments on another device."""
        counts, means, covariances = (tensor.to(device) for tensor in (self.counts, self.means, self.covariances))
        return ClassMoments(counts, means, covariances, self.local)

    @property
    def num_classes(self) -> int:
        return len(self.counts)
