"""A data set in folders of image files: train/CLASS/ and test/CLASS/."""

import os
from collections.abc import Container
from pathlib import Path
from typing import NoReturn

from ddfast.data.source import Source
from ddfast.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def list_image_folder(folder: Path) -> Source:
    """The image files below `folder`/train/CLASS and `folder`/test/CLASS, or val/CLASS where test has no such class.

    Classes are sorted by name, and so are the files of a class; hidden files and those of other endings are left out.
    A class may be missing in the test folder. Raises `UserError`, naming the folder, for a class that is missing in
    the training folder or has no image.
    """
    found = [name for name in ("test", "val") if (folder / name).is_dir()]
    if not found:
        raise UserError(f"{folder} has train but neither test nor val: expected one of them, with a folder a class")
    label_of = {name: label for label, name in enumerate(class_folders(folder / "train"))}
    classes_of = {name: _filled(folder / name, label_of) for name in found}
    # TinyImageNet's test/images, which have no labels, are no class of train.
    test = next((name for name in found if label_of.keys() & classes_of[name]), found[0])
    for place, names in (("train", label_of), (test, classes_of[test])):
        if not names:
            raise UserError(f"{folder / place} has no folder in it: expected one for every class, with image files")
    for name in classes_of[test]:
        if name not in label_of:
            raise UserError(f"{folder / test / name} is a class that {folder / 'train'} does not have")
    return Source.of_files(
        folder,
        list(label_of),
        [(path, label) for name, label in label_of.items() for path in image_files(folder, f"train/{name}")],
        [(path, label_of[name]) for name in classes_of[test] for path in image_files(folder, f"{test}/{name}")],
    )


def image_files(folder: Path, below: str) -> list[str]:
    """The image files in `folder`/`below` and its subfolders, as sorted paths relative to `folder`.

    Links to files are followed, links to subfolders are not, for they may lead back.
    Raises `UserError` where there is none, and for a folder that cannot be read.
    """
    found: list[str] = []
    for path, folders, names in os.walk(folder / below, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(path, folder)
        images = (name for name in names if name.lower().endswith(_SUFFIXES) and not name.startswith("."))
        found += [os.path.join(relative, name) for name in images]
    if not found:
        raise UserError(f"{folder / below} has no image in it: expected files that end in {', '.join(_SUFFIXES)}")
    return sorted(found)


def _filled(folder: Path, classes: Container[str]) -> list[str]:
    """The folders in `folder`, without those that are no class and empty: scripts that sort images leave such."""
    return [name for name in class_folders(folder) if name in classes or any((folder / name).glob("*"))]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones. Raises `UserError` if it cannot be read."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
