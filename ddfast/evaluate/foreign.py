"""Images that ddfast did not make, read from the files that the field keeps them in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from ddfast.evaluate.interpret import as_images, as_labels

_FORMS = "an .npz, .safetensors or .pt file or a folder of such, or a folder of CLASS/*.png"

Content = dict[str, Any]  # images, labels, and perhaps mean, std, classes and partition


@dataclass(frozen=True)
class ForeignSet:
    """Images from elsewhere, normalised as the data set that tests them is.

    images: (N, C, H, W) float32. labels: (N,) int64, or (N, K) float32, the probabilities of soft labels.
    partition: as the file says, unchecked, or 1. taken_as: what the images and labels were taken for, as a sentence.
    """

    images: Tensor
    labels: Tensor
    partition: Any
    taken_as: str


def read_images(
    path: Path, dataset: Dataset, *, labels: Path | None = None, normalised: bool | None = None
) -> ForeignSet:
    """The images and labels of a file or folder, on the device of `dataset`.

    A file is an .npz with the arrays `images` and `labels`, a .safetensors with those tensors, or a .pt or .pth with a
    dictionary of them, a list that begins with both, or what DM's script saves: {"data": [[images, labels], ...]}, of
    which the first pair is read. Arrays of NumPy may stand for tensors. A file that holds an array alone has images,
    whose labels come from another. A folder of such files holds shards, which are joined in the order of their names.
    Nothing but tensors, arrays and numbers is unpickled. Any other folder has a folder for each class, called by its
    name or number, of image files as `list_image_folder` finds them.

    Images are (N, C, H, W) or (N, H, W, C), or (N, H, W) of one channel: uint8 pixels, or floating point numbers.
    Those are normalised by the mean and std that the file holds beside them (as entries, or as metadata of a
    .safetensors). Without these the distribution of their values tells whether they are pixels or normalised as
    `dataset` is. Labels are integers (N,), or (N, K) of soft labels: probabilities, or logits. A class may have more
    images than another, but each needs one.

    Args:
        labels: a file of labels that the images' own file does not have.
        normalised: whether floating point images are normalised, or are pixels; None: their values tell.

    Raises:
        UserError: if a file cannot be read, or its images are not of the sizes and classes of `dataset`, or their
            values leave open what they are.
    """
    content = _read_folder(path, dataset) if path.is_dir() else _read_file(path)
    if labels is not None:
        content["labels"] = _labels_of(_read_file(labels))
    missing = [key for key in ("images", "labels") if not isinstance(content.get(key), Tensor)]
    if missing:
        hint = "; --labels names a file of them" if missing == ["labels"] else ""
        raise UserError(
            f"{path}: no {' and no '.join(missing)}, it holds {', '.join(map(str, content)) or 'nothing'}{hint}"
        )
    _check_classes(path, content.get("classes"), dataset)
    images, values = as_images(path, content, dataset, normalised)
    found, kind = as_labels(labels or path, content["labels"], len(images), dataset)
    device = dataset.train.images.device
    taken = f"{path}: images are taken as {values}{kind}"
    return ForeignSet(images.to(device), found.to(device), content.get("partition", 1), taken)


def _check_classes(path: Path, classes: Any, dataset: Dataset) -> None:
    if isinstance(classes, list | tuple) and tuple(classes) != dataset.classes:
        found, known = (
            f"{', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}"
            for names in (classes, dataset.classes)
        )
        raise UserError(f"{path}: its classes must be those of {dataset.name}, {known}, but are {found}")


def _read_file(path: Path) -> Content:
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path} is none of what can be evaluated: a run folder, {_FORMS}")
    try:
        return read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'damaged'}") from error
    except MemoryError:
        raise
    except Exception as error:  # zip, zlib, json and each of the libraries have errors of their own
        holds = "does not hold images and labels as arrays or tensors"
        if type(error).__name__ == "UnpicklingError":
            holds = "holds Python objects, which are not read because they could run code; save tensors or arrays alone"
        raise UserError(f"{path} is damaged, or {holds}") from error


def _read_npy(path: Path) -> Content:
    with path.open("rb") as file:
        return {"images": torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))}


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
    array = np.zeros(1)  # arrays and numbers beside the images, made by what NumPy 1 and 2 call otherwise
    numpy: list[Any] = [np.ndarray, np.dtype]
    numpy += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8)]
    for make, name in ((np.float64().__reduce__()[0], "scalar"), (array.__reduce__()[0], "_reconstruct")):
        numpy += [(make, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    with torch.serialization.safe_globals(numpy):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and "data" in content:
        content = content["data"][0]
    if isinstance(content, list | tuple):
        content = dict(zip(("images", "labels"), content, strict=False))
    if isinstance(content, Tensor | np.ndarray):
        content = {"images": content}
    return {name: torch.from_numpy(it) if isinstance(it, np.ndarray) else it for name, it in content.items()}


_READERS: dict[str, Callable[[Path], Content]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_pt,
    ".pth": _read_pt,
}


def _labels_of(content: Content) -> Any:
    """The labels in a file of labels: those of the name, or what it holds alone."""
    return content.get("labels", content.get("images"))


def _read_folder(path: Path, dataset: Dataset) -> Content:
    """Shards, or image files as pixels."""
    shards = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in _READERS)
    if shards:
        return _joined(shards)
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


def _joined(shards: Sequence[Path]) -> Content:
    """The images and labels of all files; what else they hold is that of the first one."""
    contents = [_read_file(shard) for shard in shards]
    joined = dict(contents[0])
    for key in ("images", "labels"):
        for shard, content in zip(shards, contents, strict=True):
            here, first = content.get(key), contents[0].get(key)
            if not isinstance(here, Tensor) or not isinstance(first, Tensor):
                raise UserError(f"{shard}: no {key}, which every file of a folder of shards needs")
            if (here.dtype, here.shape[1:]) != (first.dtype, first.shape[1:]):
                told = (f"{tuple(it.shape[1:])} of {it.dtype}" for it in (here, first))
                raise UserError(f"{shard}: {key} are {' each, but '.join(told)} in {shards[0].name}")
        joined[key] = torch.cat([content[key] for content in contents])
    return joined
