"""TinyImageNet: a folder a class for training; for validation one folder and a table, or a folder a class as well."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ddfast.data.image_folder import image_files, list_image_folder
from ddfast.data.progress import Progress
from ddfast.data.source import Source
from ddfast.errors import UserError


def list_tiny_imagenet(folder: Path, progress: Progress) -> Source:
    """The images below train/WNID/images, and those of val/images that val/val_annotations.txt names.

    Where scripts have moved the latter into folders of their classes, it is an image folder, for which words.txt and
    the table need not be there. Classes are the sorted WordNet numbers of wnids.txt. They are named by the first word
    of their entry in words.txt, or by their number where that file is not there. The images of test have no labels and
    are left out.

    Raises:
        UserError: naming file and line, if something is missing or wrong.
    """
    if not any((folder / "val" / "images").glob("*")):
        source = list_image_folder(folder, progress)
        return replace(source, classes=_names(folder, source.classes))
    label_of = {wnid: label for label, wnid in enumerate(sorted(_wnids(folder / "wnids.txt")))}
    train = [(path, k) for wnid, k in label_of.items() for path in image_files(folder, f"train/{wnid}/images")]
    test = [(f"val/images/{name}", k) for name, k in _table(folder / "val" / "val_annotations.txt", label_of).items()]
    return Source.of_files(folder, _names(folder, label_of), train, test)


def _wnids(path: Path) -> list[str]:
    wnids = _lines(path)
    for number, wnid in enumerate(wnids, 1):
        if not wnid or wnid in wnids[: number - 1]:
            raise UserError(f"{path}: line {number} must be one more class, not {wnid!r}")
    return wnids


def _table(path: Path, label_of: dict[str, int]) -> dict[str, int]:
    """The label of every image."""
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in label_of:
            raise UserError(f"{path}: line {number} must be an image and its class of wnids.txt, not {line!r}")
        if name in found:
            raise UserError(f"{path}: line {number} must be one more image, not {name!r}")
        found[name] = label_of[wnid]
    return found


def _names(folder: Path, wnids: Iterable[str]) -> tuple[str, ...]:
    wnids = tuple(wnids)
    if not (folder / "words.txt").exists():
        return wnids
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    return tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; TinyImageNet as it is distributed has it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8 text") from error
    if not lines:
        raise UserError(f"{path} is empty")
    return [line.strip() for line in lines]
