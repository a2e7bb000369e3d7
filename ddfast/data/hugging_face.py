"""Data sets of the Hugging Face hub, read by its library `datasets`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddfast.data.npz import check_every_class
from ddfast.data.progress import Progress
from ddfast.data.source import Encoded, Source, checksum
from ddfast.errors import UserError

PREFIX = "hf:"

_TESTS = ("test", "validation", "valid")


def list_hugging_face(data: str, progress: Progress) -> Source:
    """The images of "hf:NAME", or of "hf:NAME:CONFIG" where the set has several configurations.

    NAME is one of the hub's, or a folder that `save_to_disk` wrote; a data set that has no splits is the training
    split. The test split is the first of test, validation and valid whose labels are there, and `progress` is told
    where there are several; without one it is empty. Images are the one column of such. Of columns of class labels the
    one with the most classes is taken. Where the splits number the classes differently, labels are matched by name.

    Raises:
        UserError: without `datasets`, for a set that cannot be loaded, and for one that lacks images or labels.
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
    classes = names[label]
    train = _labels(data, "train", splits["train"], label, classes)
    tests = {split: _labels(data, split, splits[split], label, classes) for split in _TESTS if split in splits}
    labelled = [split for split in tests if min(tests[split], default=-1) >= 0]
    if min(train, default=-1) < 0:
        raise UserError(f"{data} must have labels in all of train")
    if len(labelled) > 1:
        progress.say(f"{data} has {' and '.join(labelled)}: {labelled[0]} is the test split")
    check_every_class(data, train, classes, most)
    test = labelled[:1]
    undecoded = {split: splits[split].cast_column(image, Image(decode=False)) for split in ("train", *test)}
    files = [file["filename"] for split in undecoded.values() for file in split.cache_files]
    # What lies in memory alone has no file that could be seen to change.
    held = [splits[split]._fingerprint for split in undecoded if not splits[split].cache_files]
    encoded = {
        split: Encoded(tests.get(split, train), _images(rows, image, f"{data}, {split}"))
        for split, rows in undecoded.items()
    }
    found = checksum(Path(), files, image, label, test, classes, held)
    testing = encoded[test[0]] if test else Encoded([], [])
    return Source(Path(name).name, place, tuple(classes), encoded["train"], testing, found)


def _load(data: str) -> tuple[str, str, Any]:
    """The name in `data`, what tells the set from others, and its splits by name."""
    import datasets

    name, colon, config = data.removeprefix(PREFIX).partition(":")
    name = os.path.expanduser(name)
    place = f"{PREFIX}{os.path.abspath(name)}{colon}{config}" if os.path.exists(name) else data
    try:
        if any(os.path.exists(os.path.join(name, file)) for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
            return name, place, loaded if isinstance(loaded, dict) else {"train": loaded}
        return name, place, datasets.load_dataset(name, config or None)
    except Exception as error:  # the network, the hub and the files have each their own
        raise UserError(f"{data} cannot be loaded: {error}") from error


def _only(data: str, what: str, columns: Sequence[str]) -> str:
    if len(columns) != 1:
        raise UserError(f"{data} must have one column of {what}, but has {', '.join(columns) or 'none'}")
    return columns[0]


def _labels(data: str, split: str, rows: Any, column: str, classes: Sequence[str]) -> list[int]:
    """The labels of a split by the names in `classes`, -1 where there is none."""
    kind = rows.features.get(column)
    names = getattr(kind, "names", None)
    if names is None:
        raise UserError(f"{data} must have a column {column} of class labels in {split} as in train")
    number = {name: label for label, name in enumerate(classes)}
    found = [-1 if label is None or label < 0 else number.get(names[label], names[label]) for label in rows[column]]
    foreign = next((label for label in found if isinstance(label, str)), None)
    if foreign is not None:
        raise UserError(f"{data}: {foreign} is a class of {split} that train does not have")
    return found


def _images(split: Any, column: str, called: str) -> Iterator[tuple[str, str | bytes]]:
    for number, row in enumerate(split.select_columns([column])):
        encoded = row[column] or {"bytes": b"", "path": None}
        yield f"{called}: image {number}", encoded["path"] if encoded["bytes"] is None else encoded["bytes"]
