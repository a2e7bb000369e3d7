"""Labelled images in memory: a split sorted by class, and the data set of two splits that a run works on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddfast import keyed
from ddfast.errors import UserError

_LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True, eq=False)
class Split:
    """Images sorted by class, so that a class is one run of rows.

    images: (N, C, H, W) uint8. labels: (N,) int64, ascending. counts: images per class, on the host; a class may have
    none. offsets: (K + 1,) int64, the first row of every class, then N. The tensors share one device.
    """

    images: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    offsets: Tensor

    @classmethod
    def from_tensors(cls, images: Tensor, labels: Tensor, num_classes: int) -> "Split":
        """Sorts (N, C, H, W) uint8 images and their (N,) int64 labels by class; within a class the order stays."""
        labels, order = labels.sort(stable=True)
        counts = torch.bincount(labels, minlength=num_classes)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(images.index_select(0, order), labels, tuple(counts.tolist()), offsets)

    @classmethod
    def from_arrays(cls, images: NDArray[np.uint8], labels: NDArray[np.integer], num_classes: int) -> "Split":
        """The same from arrays as files hold them: images (N, H, W, C) or (N, H, W), labels (N,) of any integers."""
        pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
        return cls.from_tensors(pixels, torch.from_numpy(labels.astype(np.int64)), num_classes)

    def to(self, device: torch.device | str) -> "Split":
        return replace(
            self, images=self.images.to(device), labels=self.labels.to(device), offsets=self.offsets.to(device)
        )

    def choose(self, classes: Tensor, per_class: int, scores: Tensor) -> Tensor:
        """Rows of `per_class` images of every class, drawn without replacement: (G, per_class) int64.

        classes: (G,) int64. scores: (G, max(counts)) random int64, as `keyed.bits` gives them: the images of a class
        with the smallest scores are taken, ordered by score. A class's rows depend on its own scores alone, and the
        host waits for nothing. Raises `UserError` when the smallest class of the split has fewer images.
        """
        fewest = min(self.counts)
        if per_class > fewest:
            raise UserError(
                f"{per_class} images a class cannot be drawn without replacement: "
                f"class {self.counts.index(fewest)} has {fewest}"
            )
        return self._ranked(classes, per_class, scores)

    def divide(self, fraction: float, seed: int, purpose: str) -> tuple["Split", "Split"]:
        """Two splits without a common image: what stays, and round(count * fraction) images of every class.

        Of every class at least one image goes and one stays, the same for the same (seed, purpose) on every machine.
        Raises `UserError` when a class has fewer than two images.
        """
        fewest = min(self.counts)
        if fewest < 2:
            raise UserError(f"class {self.counts.index(fewest)} has {fewest} images: too few to hold some of them out")
        device = self.labels.device
        classes = torch.arange(len(self.counts), device=device)
        ranked = self._ranked(classes, max(self.counts), keyed.bits(seed, 0, classes, purpose, max(self.counts)))
        taken = [min(max(round(count * fraction), 1), count - 1) for count in self.counts]
        first = torch.arange(max(self.counts), device=device) < torch.tensor(taken, device=device)[:, None]
        goes = torch.zeros_like(self.labels, dtype=torch.bool)
        goes[ranked[first]] = True
        return self._where(~goes), self._where(goes)

    def _ranked(self, classes: Tensor, first: int, scores: Tensor) -> Tensor:
        """The rows of every class by ascending score, the first `first` of them: (G, first) int64."""
        starts = self.offsets[classes]
        sizes = self.offsets[classes + 1] - starts
        columns = torch.arange(scores.shape[1], device=scores.device)
        # Halved, no score equals the filling, so a column beyond the class comes after all of its images.
        ranks = (scores >> 1).masked_fill(columns >= sizes[:, None], _LAST)
        return starts[:, None] + ranks.topk(first, dim=1, largest=False).indices

    def _where(self, mask: Tensor) -> "Split":
        return Split.from_tensors(self.images[mask], self.labels[mask], len(self.counts))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of the same classes, and the statistics that normalise their pixels.

    classes: the name of every class. mean, std: one number a channel, of pixels in [0, 1]. held_out: the fraction of
    the training images that is the test split, 0 if that is one of its own. The test split may have no image.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    held_out: float = 0.0
    # Device copies made once: building them where they are used would make the host wait in every iteration.
    _mean: Tensor = field(init=False, repr=False)
    _std: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, values in (("_mean", self.mean), ("_std", self.std)):
            per_channel = torch.tensor(values, dtype=torch.float32, device=self.train.images.device)
            object.__setattr__(self, name, per_channel[:, None, None])

    @classmethod
    def from_splits(
        cls,
        name: str,
        train: Split,
        test: Split,
        classes: Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Dataset":
        """The data set of two splits; statistics that are not given are those of the training images.

        A channel that never changes has no spread to divide by: its std is 1.

        Raises:
            UserError: if a given mean or std has not one number a channel, or is not one of pixels in [0, 1], or there
                are fewer than two classes.
        """
        if len(classes) < 2:
            raise UserError(f"{name} must have at least two classes to tell apart, but has {', '.join(classes)} alone")
        channels = train.images.shape[1]
        for argument, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise UserError(f"{argument} must have one number a channel: {channels} for {name}, not {len(values)}")
        for argument, values, valid in (("mean", mean, lambda x: 0 <= x <= 1), ("std", std, lambda x: 0 < x <= 1)):
            if values is not None and not all(map(valid, values)):
                given = ", ".join(map(str, values))
                wanted = "between 0 and 1" if argument == "mean" else "positive and at most 1"
                raise UserError(f"{argument} must be {wanted}, for pixels in [0, 1], not {given}")
        if mean is None or std is None:
            found = channel_statistics(train.images)
            mean, std = found[0] if mean is None else mean, found[1] if std is None else std
        return cls(name, train, test, tuple(classes), tuple(mean), tuple(std))

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.train.images.shape[2:]
        return height, width

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def has_test(self) -> bool:
        return len(self.test.labels) > 0

    def check_test(self) -> None:
        """Raises `UserError` if there is no test image, for an evaluation needs some."""
        if not self.has_test:
            raise UserError(f"{self.name} has no test images: --holdout 0.1 tests on a tenth of the training images")

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels (..., C, H, W) -> float32 of mean 0 and deviation 1 a channel, on the device of `images`."""
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised float images (..., C, H, W) -> pixels clamped to [0, 1], on the device of `images`."""
        return (images * self._std.to(images.device) + self._mean.to(images.device)).clamp(0, 1)

    def to(self, device: torch.device | str) -> "Dataset":
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def holdout(self, fraction: float, seed: int = 0) -> "Dataset":
        """The data set to choose settings on: `fraction` of every training class is the test split, the rest trains.

        The test images play no part; mean and std stay those of the whole training set. Raises `UserError` for a
        fraction outside (0, 1) and for a training class of fewer than two images.
        """
        if not 0 < fraction < 1:
            raise UserError(f"holdout must lie between 0 and 1, both excluded, not {fraction}")
        train, test = self.train.divide(fraction, seed, "holdout")
        return replace(self, train=train, test=test, held_out=fraction)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation of every channel of (N, C, H, W) uint8 images, as pixels in [0, 1].

    They come from a histogram of the 256 values, so nothing is rounded before the last division and no float copy of
    the images is made. A channel that never changes has std 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        histogram = torch.bincount(channel.flatten(), minlength=256).to("cpu", torch.float64)
        shares = histogram / histogram.sum()
        mean = shares @ values
        means.append(mean.item())
        deviations.append((shares @ (values - mean).square()).sqrt().item() if histogram.count_nonzero() > 1 else 1.0)
    return tuple(means), tuple(deviations)
