"""What the numbers of images and labels from elsewhere mean: their shape, the range of their values, soft labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.data import Dataset
from ddfast.data.value_range import value_range_of
from ddfast.errors import UserError


def as_labels(path: Path, labels: Tensor, count: int, dataset: Dataset) -> tuple[Tensor, str]:
    """Labels (N,) int64 or, of soft labels, probabilities (N, K) float32; and what is to be said of them.

    Raises:
        UserError: if they are not one for each image, or not of the classes of `dataset`, or a class has no image.
    """
    labels = labels.detach()
    if labels.shape == (count, 1) and dataset.num_classes > 1:
        labels = labels[:, 0]
    if labels.shape == (count, dataset.num_classes) and not labels.is_complex():
        soft, kind = _probabilities(path, labels)
        _check_every_class(path, soft.argmax(1), dataset)
        return soft, f", labels as soft ({kind}), trained on by their cross-entropy"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.shape != (count,):
        wanted = f"({count},) integers, one for each image, or soft labels ({count}, {dataset.num_classes})"
        raise UserError(f"{path}: labels must be {wanted}, not {tuple(labels.shape)} of {labels.dtype}")
    labels = labels.to(torch.int64)
    for label in labels[(labels < 0) | (labels >= dataset.num_classes)].tolist():
        last = dataset.num_classes - 1
        raise UserError(f"{path}: labels must be 0 to {last}, the classes of {dataset.name}, got {label}")
    _check_every_class(path, labels, dataset)
    return labels, ""


def _probabilities(path: Path, labels: Tensor) -> tuple[Tensor, str]:
    labels = labels.to(torch.float32)
    if not bool(labels.isfinite().all()):
        raise UserError(f"{path}: soft labels must be finite")
    if bool((labels >= 0).all()) and bool(((labels.sum(1) - 1).abs() < 1e-2).all()):
        return labels, "probabilities"
    return labels.softmax(1), "logits"


def _check_every_class(path: Path, labels: Tensor, dataset: Dataset) -> None:
    for label in (torch.bincount(labels, minlength=dataset.num_classes) == 0).nonzero().flatten().tolist():
        name = dataset.classes[label]
        raise UserError(f"{path}: class {label} ({name}) has no image, but each of {dataset.name} needs one")


def as_images(path: Path, content: dict[str, Any], dataset: Dataset, normalised: bool | None) -> tuple[Tensor, str]:
    """Images (N, C, H, W) float32 normalised as `dataset` is, and what their values were taken for.

    content: the images with, perhaps, their mean and std. normalised: whether floating point images are; None: their
    values tell.

    Raises:
        UserError: if their shape is not that of `dataset`, or their values are not finite or leave open what they are.
    """
    images = _shaped(path, content["images"].detach(), dataset)
    if images.dtype == torch.uint8:
        if normalised:
            raise UserError(f"{path}: images are uint8 pixels, which --normalised cannot be")
        return dataset.normalise(images), "pixels from 0 to 255"
    if not images.is_floating_point():
        raise UserError(f"{path}: images must be uint8 pixels or floating point numbers, not {images.dtype}")
    images = images.to(torch.float32)
    if not bool(images.isfinite().all()):
        raise UserError(f"{path}: images must be finite")
    mean, std = (_statistics(path, key, content.get(key), dataset.channels) for key in ("mean", "std"))
    if (mean is None) != (std is None):
        raise UserError(f"{path}: mean and std must be there together, but one of them is not")
    if mean is not None and std is not None:
        if normalised is False:
            raise UserError(f"{path} holds the mean and std that its images are normalised by; --pixels cannot be")
        return _renormalised(images, mean, std, dataset), "normalised by the mean and std beside them"
    found = value_range_of(images)
    if normalised is None and found is None:
        raise UserError(
            f"{path}: images from {images.min():g} to {images.max():g} may be pixels or normalised: "
            "give --pixels or --normalised"
        )
    if normalised or (normalised is None and found == "normalised"):
        return images, f"normalised as {dataset.name} is"
    top = 255 if found == "0 to 255" or (found is None and images.abs().quantile(0.99) > 2) else 1
    one = (0.0,) * dataset.channels, (1.0 / top,) * dataset.channels
    return _renormalised(images, *one, dataset), f"pixels from 0 to {top}"


def _shaped(path: Path, images: Tensor, dataset: Dataset) -> Tensor:
    """As (N, C, H, W)."""
    channels, (height, width) = dataset.channels, dataset.size
    shape = tuple(images.shape[1:])
    if shape == (channels, height, width):
        return images
    if shape == (height, width, channels):
        return images.permute(0, 3, 1, 2).contiguous()
    if shape == (height, width) and channels == 1:
        return images[:, None]
    wanted = f"(N, {channels}, {height}, {width}) or (N, {height}, {width}, {channels})"
    raise UserError(f"{path}: images must be {wanted} as those of {dataset.name}, not {tuple(images.shape)}")


def _renormalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dataset: Dataset) -> Tensor:
    """From one mean and std to those of `dataset`; the same ones change no bit."""
    if (mean, std) == (dataset.mean, dataset.std):
        return images
    here, there = (
        [torch.tensor(values)[:, None, None] for values in statistics]
        for statistics in ((mean, std), (dataset.mean, dataset.std))
    )
    return (images * here[1] + here[0] - there[0]) / there[1]


def _statistics(
    path: Path, key: str, values: Tensor | Sequence[float] | None, channels: int
) -> tuple[float, ...] | None:
    """One number a channel; a single one is that of every channel."""
    if values is None:
        return None
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64).expand(channels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: {key} must be a number, or one for each of {channels} channels") from error
    if not bool(numbers.isfinite().all()) or (key == "std" and bool((numbers <= 0).any())):
        raise UserError(
            f"{path}: {key} must be finite{' and positive' if key == 'std' else ''}, got {numbers.tolist()}"
        )
    return tuple(numbers.tolist())
