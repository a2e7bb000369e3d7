"""TinyImageNet as it is distributed: a folder a class for training, one folder and a table of labels for validation."""

from pathlib import Path

from ddfast.data.image_folder import image_files
from ddfast.data.source import Source
from ddfast.errors import UserError


def list_tiny_imagenet(folder: Path) -> Source:
    """The images below train/WNID/images, and those of val/images that val/val_annotations.txt names.

    Classes are the sorted WordNet numbers of wnids.txt, named by the first word of their entry in words.txt. The images
    of test have no labels and are left out. Raises `UserError`, naming file and line, for whatever is missing or wrong.
    """
    label_of = {wnid: label for label, wnid in enumerate(sorted(_lines(folder / "wnids.txt")))}
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    train = [(path, k) for wnid, k in label_of.items() for path in image_files(folder, f"train/{wnid}/images")]
    table, test = folder / "val" / "val_annotations.txt", []
    for number, line in enumerate(_lines(table), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in label_of:
            raise UserError(f"{table}: line {number} must be an image and its class of wnids.txt, not {line!r}")
        test.append((f"val/images/{name}", label_of[wnid]))
    names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in label_of]
    return Source.of_files(folder, names, train, test)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; TinyImageNet as it is distributed has it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8 text") from error
    if not lines:
        raise UserError(f"{path} is empty")
    return lines
