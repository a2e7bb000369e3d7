"""Which rows of a feature tensor belong to which class."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@dataclass(frozen=True, eq=False)
class ClassSegments:
    """The rows of each class, in the form the kernels read.

    Uniform segments (rows sorted by class, equal counts) need no tensor and so belong to every device. Ragged ones hold
    CSR offsets into a row index, so that a kernel reads the rows where they lie, without a sorted copy.

    Attributes:
        num_classes: K.
        num_rows: N, the rows of the features these segments describe.
        largest: the rows of the largest class.
        offsets: (K + 1,) int64, or None for uniform segments; class k owns index[offsets[k]:offsets[k + 1]].
        index: (N,) int64, rows sorted by class and in their own order within it, or None for uniform segments.
    """

    num_classes: int
    num_rows: int
    largest: int
    offsets: Tensor | None = None
    index: Tensor | None = None

    @staticmethod
    def uniform(num_classes: int, per_class: int) -> "ClassSegments":
        """Rows sorted by class, `per_class` of each.

        Raises:
            TypeError: if either number is not an integer.
            ValueError: if either number is below 1.
        """
        num_classes, per_class = _positive("num_classes", num_classes), _positive("per_class", per_class)
        return ClassSegments(num_classes, num_classes * per_class, per_class)

    @staticmethod
    def from_labels(labels: Tensor, num_classes: int | None = None) -> "ClassSegments":
        """Rows in any order, any counts, empty classes allowed. Synchronises with the device once.

        Args:
            labels: (N,) of any integer dtype, the class of every row.
            num_classes: K; by default the largest label + 1.

        Raises:
            TypeError: if `labels` is not an integer tensor, or `num_classes` not an integer.
            ValueError: if it is not one-dimensional, or a label lies outside 0 .. K − 1.
        """
        if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be an integer tensor, got {got}")
        if labels.ndim != 1:
            raise ValueError(f"labels must have shape (N,), got {tuple(labels.shape)}")
        if num_classes is not None:
            num_classes = _positive("num_classes", num_classes)
        if len(labels) == 0 and num_classes is None:
            raise ValueError("num_classes must be given where labels is empty")

        ordered, index = torch.sort(labels.to(torch.int64), stable=True)
        smallest, largest_label, largest = 0, -1, 0
        if len(labels):
            first_of_class = torch.searchsorted(ordered, ordered)
            run = torch.arange(len(labels), device=labels.device) - first_of_class
            smallest, largest_label, largest = torch.stack([ordered[0], ordered[-1], run.max() + 1]).tolist()
        classes = largest_label + 1 if num_classes is None else num_classes
        if smallest < 0 or largest_label >= classes:
            wrong = smallest if smallest < 0 else largest_label
            raise ValueError(f"labels must lie in 0 .. {max(classes, 1) - 1}, got {wrong}")
        offsets = torch.searchsorted(ordered, torch.arange(classes + 1, device=labels.device))
        return ClassSegments(classes, len(labels), largest, offsets, index)

    def to(self, device: torch.device | str) -> "ClassSegments":
        """The same segments on another device."""
        if self.offsets is None or self.index is None:
            return self
        offsets, index = self.offsets.to(device), self.index.to(device)
        return ClassSegments(self.num_classes, self.num_rows, self.largest, offsets, index)

    def counts(self, device: torch.device | str) -> Tensor:
        """The rows of each class: (K,) int64 on `device`."""
        if self.offsets is None:
            return torch.full((self.num_classes,), self.largest, dtype=torch.int64, device=device)
        return self.offsets.diff().to(device)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value if isinstance(value, int) else int(value)
