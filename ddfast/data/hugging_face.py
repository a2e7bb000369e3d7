"""Data sets of the Hugging Face hub, read by its library `datasets`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddfast.data.npz import check_every_class
from ddfast.data.source import Encoded, Source, checksum
from ddfast.errors import UserError

PREFIX = "hf:"

_TESTS = ("test", "validation", "valid")


def list_hugging_face(data: str) -> Source:
    """The images of "hf:NAME", or of "hf:NAME:CONFIG" where the set has several configurations.

    NAME is one of the hub's, or a folder that `save_to_disk` wrote. The test split is the first of test, validation and
    valid whose labels are there. Images are the one column of such; of columns of class labels the one with the most
    classes is taken. Raises `UserError` without `datasets`, for a set that cannot be loaded, and for one that lacks any
    of these.
    """
    try:
        from datasets import ClassLabel, Image
    except ImportError as error:
        raise UserError(f"{data} is read by datasets, which is missing: pip install 'ddfast[huggingface]'") from error
    name, place, splits = _load(data)
    if "train" not in splits:
        raise UserError(f"{data} must have a split train, but has {', '.join(splits)}")
    features = splits["train"].features.items()
    image = _only(data, "images", [column for column, kind in features if isinstance(kind, Image)])
    names = {column: kind.names for column, kind in features if isinstance(kind, ClassLabel)}
    most = max(map(len, names.values()), default=0)
    label = _only(data, "class labels", [column for column in names if len(names[column]) == most])
    train = _labels(splits["train"], label)
    tests = [(split, _labels(splits[split], label)) for split in _TESTS if split in splits]
    test, test_labels = next((pair for pair in tests if min(pair[1], default=-1) >= 0), ("", []))
    if not test or min(train, default=-1) < 0:
        raise UserError(f"{data} must have labels in all of train and in all of {' or '.join(_TESTS)}")
    check_every_class(data, train, names[label], most)
    undecoded = {split: splits[split].cast_column(image, Image(decode=False)) for split in ("train", test)}
    files = [file["filename"] for split in undecoded.values() for file in split.cache_files]
    # What lies in memory alone has no file that could be seen to change.
    held = [splits[split]._fingerprint for split in undecoded if not splits[split].cache_files]
    return Source(
        Path(name).name,
        place,
        tuple(names[label]),
        Encoded(train, _images(undecoded["train"], image, f"{data}, train")),
        Encoded(test_labels, _images(undecoded[test], image, f"{data}, {test}")),
        checksum(Path(), files, image, label, test, names[label], held),
    )


def _load(data: str) -> tuple[str, str, Any]:
    """The name in `data`, what tells the set from others, and its splits by name."""
    import datasets

    name, colon, config = data.removeprefix(PREFIX).partition(":")
    name = os.path.expanduser(name)
    place = f"{PREFIX}{os.path.abspath(name)}{colon}{config}" if os.path.exists(name) else data
    try:
        if os.path.exists(os.path.join(name, "dataset_dict.json")):
            return name, place, datasets.load_from_disk(name)
        return name, place, datasets.load_dataset(name, config or None)
    except Exception as error:  # the network, the hub and the files have each their own
        raise UserError(f"{data} cannot be loaded: {error}") from error


def _only(data: str, what: str, columns: Sequence[str]) -> str:
    if len(columns) != 1:
        raise UserError(f"{data} must have one column of {what}, but has {', '.join(columns) or 'none'}")
    return columns[0]


def _labels(split: Any, column: str) -> list[int]:
    """The labels of a split, -1 where there is none."""
    return [-1 if label is None else label for label in split[column]]


def _images(split: Any, column: str, called: str) -> Iterator[tuple[str, str | bytes]]:
    for number, row in enumerate(split.select_columns([column])):
        encoded = row[column] or {"bytes": b"", "path": None}
        yield f"{called}: image {number}", encoded["path"] if encoded["bytes"] is None else encoded["bytes"]
