"""CIFAR-10 and CIFAR-100 as their authors distribute them for Python: pickled batches, read without running code."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ddfast.data.dataset import Dataset, Split
from ddfast.errors import UserError

# Files of the training and of the test split, that of the names, and the entries of labels and of names.
_CIFAR10 = ([f"data_batch_{n}" for n in range(1, 6)], ["test_batch"], "batches.meta", "labels", "label_names")
_CIFAR100 = (["train"], ["test"], "meta", "fine_labels", "fine_label_names")


def is_cifar(folder: Path) -> bool:
    """Whether `folder` holds the batches of CIFAR-10 or of CIFAR-100."""
    return _layout_of(folder) is not None


def load_cifar(folder: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> Dataset:
    """CIFAR-10 from data_batch_1 to data_batch_5, test_batch and batches.meta, or CIFAR-100 from train, test and meta.

    Raises:
        UserError: naming the file, if one is missing or damaged, or holds anything but arrays, numbers and words.
    """
    training, testing, meta, labels, names = _layout_of(folder) or _CIFAR10
    classes = [str(name) for name in _read(folder / meta, names)[0]]

    def split(files: list[str]) -> Split:
        pixels, numbers = zip(*(_read(folder / file, "data", labels) for file in files), strict=True)
        images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Split.from_arrays(images, np.concatenate(numbers), len(classes))

    return Dataset.from_splits(folder.resolve().name, split(training), split(testing), classes, mean, std)


def _layout_of(folder: Path) -> tuple[list[str], list[str], str, str, str] | None:
    layouts = (_CIFAR10, _CIFAR100)
    return next((it for it in layouts if (folder / it[0][0]).is_file() and (folder / it[2]).is_file()), None)


def _read(path: Path, *keys: str) -> list[Any]:
    """The entries of a pickled dictionary."""
    try:
        with path.open("rb") as file:
            content = _Arrays(file, encoding="latin1").load()
        return [content[key] for key in keys]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path} is not a batch of CIFAR's Python version, or is damaged: {error}") from error


def _reconstruct(kind: type[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What NumPy's function of that name does: an array whose state follows."""
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 keeps the bytes of Python 3."""
    return text.encode("latin1")


class _Arrays(pickle.Unpickler):
    """Finds nothing but what builds a NumPy array, so that nothing in the file is run."""

    _FOUND: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "_codecs.encode": _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._FOUND:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._FOUND[f"{module}.{name}"]
