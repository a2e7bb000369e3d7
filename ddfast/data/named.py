"""Data sets known by name, in a folder for all data: normalised as published, those of torchvision downloaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddfast.data.dataset import Dataset, Split
from ddfast.data.folder import load_folder
from ddfast.data.npz import load_npz
from ddfast.data.places import find_place
from ddfast.data.progress import Progress
from ddfast.errors import UserError


@dataclass(frozen=True)
class _Known:
    """torchvision: its class there, if it has one. mean, std: as published; None: measured."""

    torchvision: str | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


_KNOWN = {
    "cifar10": _Known("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": _Known("CIFAR100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": _Known("SVHN", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": _Known("MNIST"),
    "fashion-mnist": _Known("FashionMNIST"),
    "tiny-imagenet": _Known(None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
NAMED = tuple(_KNOWN)


def load_named(
    name: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | None,
    progress: Progress,
) -> Dataset:
    """One of `NAMED`, in $DDFAST_DATA or ~/.cache/ddfast/data.

    That folder may hold it as `name`/train.npz and `name`/test.npz; TinyImageNet may also be there as it is distributed
    or as image files, all others come from torchvision, which downloads them into the folder.
    Raises `UserError` where TinyImageNet is not there, and without torchvision where it is needed.
    """
    known = _KNOWN[name]
    mean = known.mean if mean is None else mean
    std = known.std if std is None else std
    root = find_place("DDFAST_DATA", "~/.cache/ddfast/data")
    folder = root / name
    if known.torchvision is None:
        if not folder.exists():
            raise UserError(
                f"{folder} does not exist: expected the files of {name} as distributed (wnids.txt, train/ and val/), "
                "or train.npz and test.npz; DDFAST_DATA names another folder of all data"
            )
        dataset = load_folder(folder, mean, std, image_size, progress)
    elif os.path.exists(folder / "train.npz"):
        dataset = load_npz(folder, mean, std)
    else:
        train, test, classes = _from_torchvision(name, known.torchvision, root)
        dataset = Dataset.from_splits(name, train, test, classes, mean, std)
    return replace(dataset, name=name)


def _from_torchvision(name: str, kind: str, root: Path) -> tuple[Split, Split, list[str]]:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # the latter beside a PyTorch that it was not built for
        raise UserError(
            f"{name} comes from torchvision, which cannot be imported ({error}): pip install 'ddfast[torchvision]', or "
            f"put train.npz and test.npz into {root / name}"
        ) from error
    splits = ({"split": "train"}, {"split": "test"}) if kind == "SVHN" else ({"train": True}, {"train": False})
    try:
        train, test = (getattr(datasets, kind)(root, download=True, **split) for split in splits)
    except ModuleNotFoundError as error:
        needs = f"{name} is read by torchvision with {error.name}, which is missing"
        raise UserError(f"{needs}: pip install 'ddfast[torchvision]'") from error
    except (OSError, RuntimeError, ImportError) as error:
        raise UserError(f"{name} cannot be loaded by torchvision from {root}: {error}") from error
    classes = getattr(train, "classes", None) or [str(digit) for digit in range(10)]  # SVHN names none
    return _split(train, kind, len(classes)), _split(test, kind, len(classes)), classes


def _split(data: Any, kind: str, num_classes: int) -> Split:
    pixels, labels = (data.data.transpose(0, 2, 3, 1), data.labels) if kind == "SVHN" else (data.data, data.targets)
    return Split.from_arrays(np.asarray(pixels), np.asarray(labels), num_classes)
