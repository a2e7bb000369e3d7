"""Images that ddfast did not make, from the files the field keeps them in, normalised as a data set is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from ddfast.data import Dataset
from ddfast.data.decode import open_image
from ddfast.data.image_folder import class_folders, image_files
from ddfast.errors import UserError

_FORMS = "an .npz, .safetensors or .pt file, or a folder of CLASS/*.png"

Content = dict[str, Any]  # images, labels, and perhaps mean, std, classes and partition


def read_images(path: Path, dataset: Dataset) -> tuple[Tensor, Tensor, Any]:
    """The images of a file or folder, (N, C, H, W) float32 normalised as `dataset` is, and labels (N,) int64, there.

    The third is the partition of the images that the file says, unchecked, or 1.

    A file is an .npz with the arrays `images` and `labels`, a .safetensors with those tensors, or a .pt or .pth with a
    dictionary of them, a pair of them, or what DM's script saves: {"data": [[images, labels], ...]}, of which the first
    pair is read. Nothing but tensors and numbers is unpickled. A folder has a folder for each class, called by its name
    or number, of image files as `list_image_folder` finds them.

    Images are (N, C, H, W) or (N, H, W, C), or (N, H, W) of one channel. uint8 are pixels from 0 to 255. Floating point
    numbers are normalised already, with the mean and std that the file holds beside them (as entries, or as metadata of
    a .safetensors), or else those of `dataset`. A class may have more images than another, but each needs one.

    Raises:
        UserError: if the file cannot be read, or its images are not of the sizes and classes of `dataset`.
    """
    content = _read_folder(path, dataset) if path.is_dir() else _read_file(path)
    missing = [key for key in ("images", "labels") if not isinstance(content.get(key), Tensor)]
    if missing:
        raise UserError(f"{path}: no {' and no '.join(missing)}, it holds {', '.join(map(str, content)) or 'nothing'}")
    classes = content.get("classes")
    if isinstance(classes, list | tuple) and tuple(classes) != dataset.classes:
        found, known = (
            f"{', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}"
            for names in (classes, dataset.classes)
        )
        raise UserError(f"{path}: its classes must be those of {dataset.name}, {known}, but are {found}")
    images = _shaped(path, content["images"].detach(), dataset)
    labels = _checked_labels(path, content["labels"], len(images), dataset)
    images = _normalised(path, images, content, dataset)
    device = dataset.train.images.device
    return images.to(device), labels.to(device), content.get("partition", 1)


def _read_file(path: Path) -> Content:
    read = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_pt, ".pth": _read_pt}
    suffix = path.suffix.lower()
    if suffix not in read:
        raise UserError(f"{path} is none of what can be evaluated: a run folder, {_FORMS}")
    try:
        return read[suffix](path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'damaged'}") from error
    except MemoryError:
        raise
    except Exception as error:  # zip, zlib, pickle, json and each of the libraries have errors of their own
        raise UserError(f"{path} is damaged, or does not hold images and labels as arrays or tensors alone") from error


def _read_npz(path: Path) -> Content:
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        wanted = ("images", "labels", "mean", "std")
        return {name: torch.from_numpy(archive[name]) if name in wanted else None for name in archive.files}


def _read_safetensors(path: Path) -> Content:
    with safetensors.safe_open(path, "pt") as file:
        words = file.metadata() or {}
        about = {key: json.loads(words[key]) for key in ("classes", "mean", "std", "partition") if key in words}
        return {**about, **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _read_pt(path: Path) -> Content:
    accuracy = np.float64()  # DM's script saves some beside the images, made by what NumPy 1 and 2 call otherwise
    make: Any = accuracy.__reduce__()[0]
    names = [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.dtype, type(accuracy.dtype)]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and "data" in content:
        content = content["data"][0]
    if isinstance(content, list | tuple):
        images, labels = content
        return {"images": images, "labels": labels}
    return dict(content)


def _read_folder(path: Path, dataset: Dataset) -> Content:
    """... of image files, as pixels."""
    label_of = {str(label): label for label in range(dataset.num_classes)}
    label_of |= {name: label for label, name in enumerate(dataset.classes)}
    height, width = dataset.size
    images, labels = [], []
    for name in class_folders(path):
        if name not in label_of:
            raise UserError(f"{path / name} is not called by the name or number of a class of {dataset.name}")
        for below in image_files(path, name):
            file = str(path / below)
            image, _ = open_image(file, file)
            if image.size != (width, height):
                found = f"{image.width}x{image.height}"
                raise UserError(f"{file} has {found} pixels, the images of {dataset.name} {width}x{height}")
            images.append(torch.from_numpy(np.array(image.convert("L") if dataset.channels == 1 else image)))
            labels.append(label_of[name])
    if not images:
        raise UserError(f"{path} holds no run and no images: expected a run folder, or {_FORMS}")
    return {"images": torch.stack(images), "labels": torch.tensor(labels)}


def _checked_labels(path: Path, labels: Tensor, count: int, dataset: Dataset) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.shape != (count,):
        found = f"{tuple(labels.shape)} of {labels.dtype}"
        raise UserError(f"{path}: labels must be ({count},) integers, one for each image, not {found}")
    labels = labels.to(torch.int64)
    for label in labels[(labels < 0) | (labels >= dataset.num_classes)].tolist():
        last = dataset.num_classes - 1
        raise UserError(f"{path}: labels must be 0 to {last}, the classes of {dataset.name}, got {label}")
    for label in (torch.bincount(labels, minlength=dataset.num_classes) == 0).nonzero().flatten().tolist():
        name = dataset.classes[label]
        raise UserError(f"{path}: class {label} ({name}) has no image, but each of {dataset.name} needs one")
    return labels


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


def _normalised(path: Path, images: Tensor, content: Content, dataset: Dataset) -> Tensor:
    if images.dtype == torch.uint8:
        return dataset.normalise(images)
    if not images.is_floating_point():
        raise UserError(f"{path}: images must be uint8 pixels or floating point numbers, not {images.dtype}")
    images = images.to(torch.float32)
    if not bool(images.isfinite().all()):
        raise UserError(f"{path}: images must be finite")
    mean, std = (_statistics(path, key, content.get(key), dataset.channels) for key in ("mean", "std"))
    if (mean is None) != (std is None):
        raise UserError(f"{path}: mean and std must be there together, but one of them is not")
    if mean is None or std is None:
        if images.min() >= 0 and images.max() <= 1 and any(dataset.mean):
            raise UserError(
                f"{path}: floating point images must be normalised, but these lie between 0 and 1 as pixels do; the "
                "file may hold mean 0 and std 1 beside them, or uint8 pixels"
            )
        mean, std = dataset.mean, dataset.std
    reach = max(max(m, 1 - m) / s for m, s in zip(mean, std, strict=True))  # of normalised pixels
    if images.min() >= 0 and images.max() > 10 * reach:  # distilled images go far beyond, but to both sides
        raise UserError(
            f"{path}: floating point images must be normalised, but these lie between {images.min():g} and "
            f"{images.max():g}, as pixels from 0 to 255 do; the file may hold uint8 pixels"
        )
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
