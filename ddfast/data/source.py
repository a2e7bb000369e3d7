"""Images that are still encoded, as files hold them, with a checksum that tells when they have changed."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddfast.errors import UserError

Files = Sequence[tuple[str, int]]  # paths and labels


@dataclass(frozen=True)
class Encoded:
    """The images of a split.

    labels: one for each image. images: for each, in the same order, what it is called in a sentence, and its file or
    the bytes of one.
    """

    labels: Sequence[int]
    images: Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Source:
    """A data set that must be decoded.

    place: what tells it from all others: the absolute path of a folder, or a name on a hub. checksum: another one
    whenever `checksum` finds its files changed.
    """

    name: str
    place: str
    classes: tuple[str, ...]
    train: Encoded
    test: Encoded
    checksum: str

    @classmethod
    def of_files(cls, folder: Path, classes: Sequence[str], train: Files, test: Files) -> "Source":
        """Image files with their labels; their paths are relative to `folder`.

        Raises `UserError` for a file that is not there.
        """
        place, files = folder.resolve(), (*train, *test)
        found = checksum(folder, [path for path, _ in files], classes, [label for _, label in files])
        return cls(place.name, str(place), tuple(classes), _encoded(folder, train), _encoded(folder, test), found)


def checksum(folder: Path, files: Iterable[str], *others: object) -> str:
    """Of the paths below `folder`, sizes and times of `files`, none of which is read, and of `others`.

    The time of modification may be copied together with a file, so that of the change of its inode counts as well.
    Raises `UserError` for a file that is not there.
    """
    digest = hashlib.sha256(json.dumps(others).encode())
    for path in files:
        try:
            status = os.stat(folder / path)
        except OSError as error:
            raise UserError(f"{folder / path} cannot be read: {error.strerror}") from error
        digest.update(json.dumps((path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())
    return digest.hexdigest()


def _encoded(folder: Path, files: Files) -> Encoded:
    paths = [os.path.join(folder, path) for path, _ in files]
    return Encoded([label for _, label in files], [(path, path) for path in paths])
