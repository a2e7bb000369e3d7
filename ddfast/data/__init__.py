"""The data sets that a run can be given, by name or as a folder."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ddfast.data.cache import load_source
from ddfast.data.dataset import Dataset, Split
from ddfast.data.digits import load_digits
from ddfast.data.folder import load_folder
from ddfast.data.hugging_face import PREFIX, list_hugging_face
from ddfast.data.named import NAMED, load_named
from ddfast.data.npz import load_npz
from ddfast.data.progress import Progress
from ddfast.errors import UserError

__all__ = ["Dataset", "Progress", "Split", "absolute_place", "load", "load_digits", "load_npz"]

_NAMES = ("digits", *NAMED)


def absolute_place(data: str) -> str:
    """`data` as `load` takes it from any working folder: a path becomes absolute, a name stays."""
    prefix = PREFIX if data.startswith(PREFIX) else ""
    path = os.path.expanduser(data.removeprefix(prefix))
    if data == "digits" or data in NAMED or not (os.path.exists(path) or (os.sep in data and not prefix)):
        return data
    return prefix + os.path.abspath(path)


def load(
    data: str,
    *,
    holdout: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Dataset:
    """The data set called `data`.

    Args:
        data: "digits", a name that `load_named` knows, "hf:NAME" for `list_hugging_face`, or the path of a folder for
            `load_folder` ("./digits" is a folder).
        holdout: a fraction in (0, 1) tests on that part of every training class and leaves the test images alone; 0
            tests on the test images.
        mean, std: one number a channel, of pixels in [0, 1]; None: as published for what `load_named` knows, those of
            the training images otherwise.
        image_size: image files are brought to so many pixels a side, as `decode` does; None: they have one size.
        progress: is told of what takes long.

    Raises:
        UserError: for an unknown name, for whatever is wrong with the data, and for an `image_size` that images which
            are no files do not have.
    """
    path = os.path.expanduser(data)
    progress = progress or Progress()
    if data == "digits":
        dataset = load_digits(mean, std)
    elif data in NAMED:
        dataset = load_named(data, mean, std, image_size, progress)
    elif data.startswith(PREFIX):
        dataset = load_source(list_hugging_face(data, progress), mean, std, image_size, progress)
    elif os.sep in data or os.path.exists(path):
        dataset = load_folder(Path(path), mean, std, image_size, progress)
    else:
        near = difflib.get_close_matches(data.lower(), _NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"data {data!r} is neither a folder nor a known data set ({', '.join(_NAMES)}, {PREFIX}NAME){hint}"
        )
    if image_size is not None and dataset.size != (image_size, image_size):
        height, width = dataset.size
        raise UserError(f"image_size is for image files; {data} holds arrays of {width}x{height} pixels")
    if holdout:
        dataset = dataset.holdout(holdout)
    return dataset.to(device)
