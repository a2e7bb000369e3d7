"""A data set in folders of image files: train/CLASS/ and test/CLASS/, or CLASS/ alone."""

import os
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ddfast.data.progress import Progress
from ddfast.data.source import Source
from ddfast.errors import UserError

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def list_image_folder(folder: Path, progress: Progress) -> Source:
    """The image files below `folder`/train/CLASS and `folder`/test/CLASS.

    The folder of a split may have any of the names in `_TRAIN` or `_TEST`, in any case. Where several test folders are
    there, the first one of `_TEST` that has a training class is taken, and `progress` is told. Without a test folder
    the test split is empty. Without a training folder the classes are the folders in `folder` itself.

    Classes are sorted by name, or by number where all names are numbers; the files of a class are sorted by name.
    Hidden files and those of other endings are left out. A class may be missing in the test folder.

    Raises:
        UserError: if a class is missing in the training folder or has no image, or a folder cannot be read.
    """
    train = next(iter(_splits(folder, _TRAIN)), "")
    label_of = {name: label for label, name in enumerate(class_folders(folder / train))}
    classes_of = {name: _filled(folder / name, label_of) for name in (_splits(folder, _TEST) if train else ())}
    # TinyImageNet's test/images, which have no labels, are no class of train.
    tests = [name for name in classes_of if label_of.keys() & classes_of[name]] or list(classes_of)[:1]
    if len(tests) > 1:
        progress.say(f"{folder} has {' and '.join(tests)}: {tests[0]} is the test split")
    for place, names in ((train, label_of), *((test, classes_of[test]) for test in tests[:1])):
        if not names:
            raise UserError(f"{folder / place} has no folder in it: expected one for every class, with image files")
    testing = [(test, name) for test in tests[:1] for name in classes_of[test]]
    for test, name in testing:
        if name not in label_of:
            raise UserError(f"{folder / test / name} is a class that {folder / train} does not have")
    return Source.of_files(
        folder,
        list(label_of),
        [(path, label) for name, label in label_of.items() for path in image_files(folder, os.path.join(train, name))],
        [(path, label_of[name]) for test, name in testing for path in image_files(folder, os.path.join(test, name))],
    )


def is_image_folder(folder: Path) -> bool:
    """Whether there is a training folder in `folder`, or an image file in a folder of a class."""
    if _splits(folder, _TRAIN):
        return True
    if not folder.is_dir() or _splits(folder, _TEST):
        return False
    return any(_images_in(folder, name, lambda error: None) for name in class_folders(folder))


def _splits(folder: Path, names: Sequence[str]) -> list[str]:
    """The folders in `folder` that are called by one of `names` in any case, in the order of `names`."""
    found = class_folders(folder) if folder.is_dir() else []
    return sorted((name for name in found if name.lower() in names), key=lambda name: names.index(name.lower()))


def image_files(folder: Path, below: str) -> list[str]:
    """The image files in `folder`/`below` and its subfolders, as sorted paths relative to `folder`.

    Links to files are followed, links to subfolders are not, for they may lead back.
    Raises `UserError` where there is none, and for a folder that cannot be read.
    """
    found = sorted(_images_in(folder, below, _refuse))
    if not found:
        raise UserError(f"{folder / below} has no image in it: expected files that end in {', '.join(_SUFFIXES)}")
    return found


def _images_in(folder: Path, below: str, onerror: Callable[[OSError], object]) -> Iterator[str]:
    for path, folders, names in os.walk(folder / below, onerror=onerror):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(path, folder)
        images = (name for name in names if name.lower().endswith(_SUFFIXES) and not name.startswith("."))
        yield from (os.path.join(relative, name) for name in images)


def _filled(folder: Path, classes: Container[str]) -> list[str]:
    """The folders in `folder`, without those that are no class and empty: scripts that sort images leave such."""
    return [name for name in class_folders(folder) if name in classes or any((folder / name).glob("*"))]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, without hidden ones: by number where all are numbers, else by name.

    Raises `UserError` if `folder` cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse(error)
    return sorted(names, key=int) if all(name.isascii() and name.isdigit() for name in names) else names


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
