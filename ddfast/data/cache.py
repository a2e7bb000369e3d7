"""Decoded images are kept: what was decoded once is read back until its source changes."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddfast.data.dataset import Dataset, Split
from ddfast.data.decode import decode
from ddfast.data.npz import read_arrays
from ddfast.data.places import find_place
from ddfast.data.progress import Progress
from ddfast.data.source import Source
from ddfast.errors import UserError
from ddfast.files import replacing

_FORMAT = 2  # of the file and of what decoding does: whatever changes in them makes it another number
_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_source(
    source: Source,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | None,
    progress: Progress,
) -> Dataset:
    """The data set of a source, decoded, or as it was decoded the last time.

    What is decoded is kept in an npz file for every place and size, in $DDFAST_CACHE or ~/.cache/ddfast/decoded, and
    decoded again when the source has another checksum or the file is damaged. Of several processes one decodes, and
    the others wait. Raises `UserError` for an image as `decode` does, and when the folder cannot be written.
    """
    train_images, train_labels, test_images, test_labels = _arrays(source, image_size, progress)
    return Dataset.from_splits(
        source.name,
        Split.from_arrays(train_images, train_labels, len(source.classes)),
        Split.from_arrays(test_images, test_labels, len(source.classes)),
        source.classes,
        mean,
        std,
    )


def _arrays(source: Source, image_size: int | None, progress: Progress) -> list[NDArray[Any]]:
    """Images (N, H, W, C) uint8 and labels (N,) int64 of the training split, and the same of the test split."""
    folder = find_place("DDFAST_CACHE", "~/.cache/ddfast/decoded")
    name = os.fsencode(source.name)[:100].decode(errors="ignore")  # a file's name has 255 bytes at most
    key = hashlib.sha256(os.fsencode(f"{source.place}\n{image_size}")).hexdigest()[:16]
    path = folder / f"{name}-{key}.npz"
    checksum = f"{_FORMAT} {source.checksum}"
    kept = _read(path, checksum, source, Progress())
    if kept:
        return kept
    with _alone(path, source, progress):
        kept = _read(path, checksum, source, progress)  # of the process that was waited for
        if kept:
            return kept
        images, test_images = decode(source, image_size, progress)
        labels, test_labels = np.array(source.train.labels), np.array(source.test.labels)
        with replacing(path) as file:
            np.savez(
                file,
                checksum=checksum,
                train_images=images,
                train_labels=labels,
                test_images=test_images,
                test_labels=test_labels,
            )
    return [images, labels, test_images, test_labels]


def _read(path: Path, checksum: str, source: Source, progress: Progress) -> list[NDArray[Any]]:
    """The arrays that are kept, or none if they are not what would be decoded now."""
    if not os.path.exists(path):
        return []
    try:
        (held,) = read_arrays(path, ["checksum"])
        if np.array_equal(held, checksum):
            return read_arrays(path, _KEYS)
        progress.say(f"{source.place} has changed since it was decoded, and is decoded again")
    except UserError as error:
        progress.say(f"{error}: {source.place} is decoded again")
    return []


@contextmanager
def _alone(path: Path, source: Source, progress: Progress) -> Iterator[None]:
    """Only one process at a time is in the block for the same `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written: {error.strerror}; DDFAST_CACHE names another folder for decoded images"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another process, which decodes {source.place}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
