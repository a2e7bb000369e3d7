"""A data set in a folder, of whichever kind it is."""

import os
from collections.abc import Sequence
from pathlib import Path

from ddfast.data.cache import load_source
from ddfast.data.cifar import is_cifar, load_cifar
from ddfast.data.dataset import Dataset
from ddfast.data.image_folder import is_image_folder, list_image_folder
from ddfast.data.npz import load_npz
from ddfast.data.progress import Progress
from ddfast.data.tiny_imagenet import list_tiny_imagenet


def load_folder(
    folder: Path,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | None,
    progress: Progress,
) -> Dataset:
    """The data set in `folder`, of the kind that its files tell.

    train.npz means npz files, wnids.txt means TinyImageNet, CIFAR's batches mean CIFAR, and a folder train, or folders
    of image files, mean an image folder; in this order.

    Raises:
        UserError: if there is none of them, or something is wrong with them.
    """
    source = None
    if os.path.exists(folder / "train.npz"):
        return load_npz(folder, mean, std)
    if os.path.exists(folder / "wnids.txt"):
        source = list_tiny_imagenet(folder, progress)
    elif is_cifar(folder):
        return load_cifar(folder, mean, std)
    elif is_image_folder(folder):
        source = list_image_folder(folder, progress)
    return load_npz(folder, mean, std) if source is None else load_source(source, mean, std, image_size, progress)
