"""A data set in a folder of npz files; whatever is wrong with them is said in one sentence."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddfast.data.dataset import Dataset, Split
from ddfast.data.value_range import value_range_of
from ddfast.errors import UserError

_LAYOUT = (
    "train.npz and test.npz, each with images (N, H, W, C), (N, C, H, W) or (N, H, W) and labels (N,), "
    "or train/CLASS and test/CLASS of image files"
)
_KEYS = ("images", "labels")


def load_npz(folder: Path, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Dataset:
    """Reads `folder`/train.npz, and `folder`/test.npz and the class names in `folder`/classes.txt if they are there.

    An npz file holds `images` (N, H, W, C) or (N, C, H, W) of 1 or 3 channels, or (N, H, W), and `labels`, integers
    (N,) or (N, 1) from 0 up. Images are uint8, or floating point pixels from 0 to 1 or from 0 to 255, which are rounded
    to 8 bits. classes.txt names one class a line; of a line with tabs, its last column is the name. Every class needs a
    training image, but not a test image. Without test.npz the test split is empty.

    Raises:
        UserError: naming the file, if anything is missing, unreadable or inconsistent.
    """
    _check_folder(folder)
    train, test = folder / "train.npz", folder / "test.npz"
    train_images, train_labels = _read(train)
    test_images, test_labels = _read(test) if test.exists() else (train_images[:0], train_labels[:0])
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(f"{test}: an image is {test_images.shape[1:]}, but {train_images.shape[1:]} in train.npz")
    largest = max(int(labels.max(initial=0)) for labels in (train_labels, test_labels))
    names = _class_names(folder / "classes.txt", largest)
    check_every_class(train, train_labels, names, len(names) or largest + 1)
    classes = names or [str(label) for label in range(largest + 1)]
    return Dataset.from_splits(
        folder.resolve().name,
        Split.from_arrays(train_images, train_labels, len(classes)),
        Split.from_arrays(test_images, test_labels, len(classes)),
        classes,
        mean,
        std,
    )


def _check_folder(folder: Path) -> None:
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; expected a folder with {_LAYOUT}") from error
    if "train.npz" not in found:
        holds = f"holds {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else "is empty"
        raise UserError(f"{folder} has no train.npz: it {holds}; expected {_LAYOUT}")


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """The checked images (N, H, W, C) and labels (N,) of one npz file."""
    images, labels = read_arrays(path, _KEYS)
    images = _checked_images(path, images)
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    _check_labels(path, labels, len(images))
    return images, labels


def read_arrays(path: Path, keys: Sequence[str]) -> list[NDArray[Any]]:
    """The arrays of an npz file that are called `keys`; others in it are not read.

    Raises `UserError`, naming the file, when one is missing, or damaged in a single byte, or the whole unreadable.
    """
    try:
        # Pickled objects are refused: reading them would run code from the file.
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            found = archive.files
            arrays = [np.asarray(archive[key]) for key in keys if key in found]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'damaged'}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not an npz file, or is damaged or cut short") from error
    except Exception as error:  # zlib, struct, tokenize and numpy each have their own for a damaged array
        raise UserError(f"{path}: its {' or '.join(keys)} are damaged, or pickled Python objects") from error
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(f"{path}: no array called {' or '.join(missing)}, it holds {', '.join(found) or 'nothing'}")
    return arrays


def _checked_images(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    """As (N, H, W, C) uint8."""
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        wanted = "(N, H, W, C) or (N, C, H, W) with 1 or 3 channels, or (N, H, W)"
        raise UserError(f"{path}: images must be {wanted}, not {images.shape}")
    if images.size == 0:
        raise UserError(f"{path}: there must be at least one image, but images is {images.shape}")
    images = images if images.ndim == 4 else images[..., None]
    return images if images.dtype == np.uint8 else _as_bytes(path, images)


def _as_bytes(path: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    """Floating point pixels, or integers of another type from 0 to 255, as uint8."""
    if images.dtype.kind not in "iuf":
        raise UserError(f"{path}: images must be numbers, not {images.dtype}")
    if images.dtype.kind != "f":
        if images.min() < 0 or images.max() > 255:
            raise UserError(f"{path}: images must be from 0 to 255, not from {images.min()} to {images.max()}")
        return images.astype(np.uint8)
    if not np.isfinite(images).all():
        raise UserError(f"{path}: images must be finite")
    found = value_range_of(torch.from_numpy(images.astype(np.float32)))
    if found not in ("0 to 1", "0 to 255"):
        extent = f"they are from {images.min():g} to {images.max():g}"
        raise UserError(f"{path}: images must be pixels from 0 to 1 or from 0 to 255, but {extent}")
    return np.rint(images * (255 if found == "0 to 1" else 1)).clip(0, 255).astype(np.uint8)


def _check_labels(path: Path, labels: NDArray[Any], count: int) -> None:
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels must be integers, not {labels.dtype}")
    if labels.shape != (count,):
        raise UserError(f"{path}: labels must be ({count},), one for each image, not {labels.shape}")
    if labels.min() < 0:
        raise UserError(f"{path}: labels must be 0 or more, not {labels.min()}")


def check_every_class(place: Path | str, labels: ArrayLike, names: Sequence[str], num_classes: int) -> None:
    """Raises `UserError`, naming `place`, for a class that none of the training labels is of."""
    present = np.unique(np.asarray(labels))
    missing = next((label for label in range(num_classes) if label not in present), None)
    if missing is None:
        return
    called = f" ({names[missing]})" if names else ""
    fix = f"; numpy.unique(labels, return_inverse=True)[1] numbers the {len(present)} classes from 0" * (not names)
    raise UserError(f"{place}: class {missing}{called} has no training image, but every class needs one{fix}")


def _class_names(path: Path, largest: int) -> list[str]:
    """The names in classes.txt, at least `largest` + 1 of them, or an empty list if there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8 text with one class name a line") from error
    names = [line.split("\t")[-1].strip() for line in lines]
    if "" in names:
        raise UserError(f"{path}: line {names.index('') + 1} must name a class, but is empty")
    if largest >= len(names):
        raise UserError(f"{path}: {len(names)} classes are named, but the labels go up to {largest}")
    return names
