"""What tells a run's data from other data: kept in the run folder, and compared before the run is used again."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ddfast.data.dataset import Dataset, Split

_TOLERANCE = 0.5  # of 255, for the mean pixel of a class: another decoder rounds a pixel by 1 at most, to both sides


@dataclass(frozen=True)
class SplitFingerprint:
    """counts: images of each class. pixels: sha256 of the images, sorted by class. means: of each class, 0 to 255."""

    counts: tuple[int, ...]
    pixels: str
    means: tuple[float, ...]


@dataclass(frozen=True)
class Fingerprint:
    """The classes, the shape (C, H, W) and the normalisation of a data set, and what its two splits hold.

    A run that was begun by an earlier version knows nothing of its splits: these are None.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: SplitFingerprint | None = None
    test: SplitFingerprint | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "Fingerprint":
        """Reads every pixel once: about a second for a gigabyte."""
        shape = (dataset.channels, *dataset.size)
        return cls(dataset.classes, shape, dataset.mean, dataset.std, _split(dataset.train), _split(dataset.test))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Fingerprint":
        classes, shape, mean, std = (tuple(content[key]) for key in ("classes", "shape", "mean", "std"))
        train, test = (_split_from(content.get(key)) for key in ("train", "test"))
        return cls(classes, shape, mean, std, train, test)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def difference(self, other: "Fingerprint") -> str | None:
        """What `other` has that this one has not, as the rest of a sentence; None if both may be the same data."""
        if self.classes != other.classes:
            return _classes_differ(self.classes, other.classes)
        if self.shape != other.shape:
            shapes = ("x".join(map(str, it.shape)) for it in (other, self))
            return "its images are {} and not {} (channels, height, width)".format(*shapes)
        for name in ("train", "test"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine is None or others is None or (mine.pixels == others.pixels and mine.counts == others.counts):
                continue
            for label, (count, before) in enumerate(zip(others.counts, mine.counts, strict=True)):
                if count != before:
                    return f"class {self.classes[label]} has {count} and not {before} {name} images"
            far = max(range(len(mine.means)), key=lambda k: abs(mine.means[k] - others.means[k]))
            if abs(mine.means[far] - others.means[far]) > _TOLERANCE:
                means = f"{others.means[far]:.2f} and not {mine.means[far]:.2f} of 255"
                return f"the mean pixel of class {self.classes[far]} in its {name} images is {means}"
        for name in ("mean", "std"):
            mine, others = getattr(self, name), getattr(other, name)
            if max(abs(a - b) for a, b in zip(mine, others, strict=True)) > _TOLERANCE / 255:
                return f"its {name} is {_numbers(others)} and not {_numbers(mine)}"
        return None

    def decoded_differently(self, other: "Fingerprint") -> bool:
        """Whether some pixel differs, which without a `difference` is another decoder's rounding."""
        pairs = ((self.train, other.train), (self.test, other.test))
        return any(mine and others and mine.pixels != others.pixels for mine, others in pairs)


def _split(split: Split) -> SplitFingerprint:
    digest = hashlib.sha256()
    for images in split.images.split(4096):
        digest.update(images.cpu().contiguous().numpy())
    sums = torch.stack([_total(images) for images in split.images.split(split.counts)])
    sizes = torch.tensor(split.counts).clamp(min=1) * split.images[:1].numel() if len(split.images) else 1
    return SplitFingerprint(split.counts, digest.hexdigest(), tuple((sums / sizes).tolist()))


def _total(images: Tensor) -> Tensor:
    """The sum of all pixels, exactly."""
    return images.sum(dtype=torch.int64).cpu().to(torch.float64)


def _split_from(content: dict[str, Any] | None) -> SplitFingerprint | None:
    if content is None:
        return None
    return SplitFingerprint(tuple(content["counts"]), content["pixels"], tuple(content["means"]))


def _classes_differ(mine: tuple[str, ...], others: tuple[str, ...]) -> str:
    missing = [name for name in mine if name not in others]
    new = [name for name in others if name not in mine]
    if not missing and not new:
        first = next(k for k in range(len(mine)) if mine[k] != others[k])
        return f"its classes are in another order: class {first} is {others[first]} and not {mine[first]}"
    parts = [f"it has {_few(new)}, which the run does not have"] * bool(new)
    parts += [f"it lacks {_few(missing)}"] * bool(missing)
    return f"its classes are others: {' and '.join(parts)}"


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
