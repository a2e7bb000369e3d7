"""The data sets that a run can be given, by name or as a folder."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ddfast.data.dataset import Dataset, Split
from ddfast.data.digits import load_digits
from ddfast.data.npz import load_npz
from ddfast.errors import UserError

__all__ = ["Dataset", "Split", "load", "load_digits", "load_npz"]

_NAMES = ("digits",)


def load(
    data: str,
    *,
    holdout: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Dataset:
    """The data set called `data`: "digits", or the path of a folder that `load_npz` reads ("./digits" is a folder).

    holdout: a fraction in (0, 1) tests on that part of every training class and leaves the test images alone; 0 tests
    on the test images. mean, std: one number a channel, of pixels in [0, 1]; those of the training images if None.
    Raises `UserError` for an unknown name and for whatever is wrong with the folder.
    """
    path = os.path.expanduser(data)
    if data == "digits":
        dataset = load_digits(mean, std)
    elif os.sep in data or os.path.exists(path):
        dataset = load_npz(Path(path), mean, std)
    else:
        near = difflib.get_close_matches(data.lower(), _NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"data {data!r} is neither a folder nor a known data set ({', '.join(_NAMES)}){hint}")
    if holdout:
        dataset = dataset.holdout(holdout)
    return dataset.to(device)
