"""A data set in a folder, of whichever kind it is."""

import os
from collections.abc import Sequence
from pathlib import Path

from ddfast.data.cache import load_source
from ddfast.data.dataset import Dataset
from ddfast.data.image_folder import list_image_folder
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
    """npz files if there is a train.npz, TinyImageNet if there is a wnids.txt, image files if there is a folder train.

    Raises `UserError` where there is none of them, and for whatever is wrong with them.
    """
    if not os.path.exists(folder / "train.npz"):
        if os.path.exists(folder / "wnids.txt"):
            return load_source(list_tiny_imagenet(folder), mean, std, image_size, progress)
        if os.path.isdir(folder / "train"):
            return load_source(list_image_folder(folder), mean, std, image_size, progress)
    return load_npz(folder, mean, std)
