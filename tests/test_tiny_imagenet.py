"""TinyImageNet as it is distributed, in small."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pictures import picture, pixels, refused, save
from PIL import Image

from ddfast.data import load

WNIDS = ("n03", "n01", "n02")
TABLE = "val_1.JPEG\tn02\t0\t0\t5\t5\nval_0.JPEG\tn01\t0\t0\t5\t5\nval_2.JPEG\tn01\t1\t1\t2\t2\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tiny"
    for k, wnid in enumerate(WNIDS):
        for number in range(2):
            save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", picture(10 * k + number))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
    for number in range(3):
        save(folder / "val" / "images" / f"val_{number}.JPEG", picture(100 + number))
    save(folder / "test" / "images" / "test_0.JPEG", picture(0))
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n00\tentity\nn02\tcat, feline\nn01\tfire ant, bug\nn04\tdog\n")
    (folder / "val" / "val_annotations.txt").write_text(TABLE)
    return folder


def decoded(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return pixels(image)


class TestTinyImageNet:
    def test_classes_are_sorted_by_number_and_named_by_their_first_word(self, folder: Path) -> None:
        dataset = load(str(folder))
        assert (dataset.name, dataset.classes) == ("tiny", ("fire ant", "cat", "n03"))
        assert (dataset.train.counts, dataset.test.counts) == ((2, 2, 2), (2, 1, 0))

    def test_images_have_the_labels_of_folders_and_of_the_table(self, folder: Path) -> None:
        dataset = load(str(folder))
        for k, wnid in enumerate(sorted(WNIDS)):
            expected = decoded(folder / "train" / wnid / "images" / f"{wnid}_1.JPEG")
            assert torch.equal(dataset.train.images[2 * k + 1], expected)
        for row, number in enumerate((0, 2, 1)):
            assert torch.equal(dataset.test.images[row], decoded(folder / "val" / "images" / f"val_{number}.JPEG"))

    def test_another_label_is_noticed(self, folder: Path) -> None:
        before = load(str(folder)).test.counts
        (folder / "val" / "val_annotations.txt").write_text(TABLE.replace("val_2.JPEG\tn01", "val_2.JPEG\tn03"))
        assert (before, load(str(folder)).test.counts) == ((2, 1, 0), (1, 1, 1))

    def test_as_a_plain_image_folder(self, folder: Path) -> None:
        train = load(str(folder)).train
        for line in TABLE.splitlines():
            name, wnid = line.split("\t")[:2]
            (folder / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
            (folder / "val" / "images" / name).rename(folder / "val" / wnid / "images" / name)
        (folder / "val" / "images").rmdir()
        (folder / "wnids.txt").unlink()
        (folder / "test").rename(folder / "unlabelled")
        plain = load(str(folder))
        assert plain.classes == ("n01", "n02", "n03")
        assert torch.equal(plain.train.images, train.images)
        assert plain.test.counts == (2, 1, 0)


def moved(folder: Path, below: str, *without: str) -> Path:
    """As scripts leave it: the validation images in folders of their classes, without the files called so."""
    for line in TABLE.splitlines():
        name, wnid = line.split("\t")[:2]
        place = folder / "val" / wnid / below
        place.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(place / name)
    for name in without:
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    return folder


class TestReorganised:
    """test/images, which have no labels, are left out as before."""

    @pytest.mark.parametrize("below", ["", "images"])
    @pytest.mark.parametrize("without", [(), ("val/images",), ("val/images", "val/val_annotations.txt")])
    def test_is_the_same_data(self, folder: Path, below: str, without: tuple[str, ...]) -> None:
        before = load(str(folder))
        after = load(str(moved(folder, below, *without)))
        assert after.classes == before.classes
        assert torch.equal(after.train.images, before.train.images)
        assert after.test.counts == before.test.counts
        assert sorted(after.test.images.flatten(1).tolist()) == sorted(before.test.images.flatten(1).tolist())

    @pytest.mark.parametrize("without", [("words.txt",), ("wnids.txt",), ("words.txt", "wnids.txt")])
    def test_classes_are_numbers_where_words_or_numbers_are_missing(
        self, folder: Path, without: tuple[str, ...]
    ) -> None:
        dataset = load(str(moved(folder, "", "val/images", *without)))
        assert (dataset.classes, dataset.test.counts) == (("n01", "n02", "n03"), (2, 1, 0))

    def test_test_images_with_labels_come_first(self, folder: Path) -> None:
        (moved(folder, "", "val/images") / "test" / "images").rename(folder / "test" / "n03")
        assert load(str(folder)).test.counts == (0, 0, 1)

    def test_unlabelled_images_alone_do_not_do(self, folder: Path) -> None:
        moved(folder, "", "val/images").joinpath("val").rename(folder / "elsewhere")
        refused(folder, "tiny/test/images is a class that ")


def test_classes_are_wordnet_numbers_without_words(folder: Path) -> None:
    before = load(str(folder))
    (folder / "words.txt").unlink()
    after = load(str(folder))
    assert after.classes == ("n01", "n02", "n03")
    assert torch.equal(after.test.images, before.test.images)


def test_spaces_and_blank_lines_at_the_end_do_not_matter(folder: Path) -> None:
    before = load(str(folder))
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("\n", " \r\n") + "\n \n")
    after = load(str(folder))
    assert (after.classes, after.test.counts) == (before.classes, before.test.counts)
    assert torch.equal(after.test.images, before.test.images)


def wrote(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (
        lambda folder: (folder / "val" / "val_annotations.txt").unlink(),
        "tiny/val/val_annotations.txt cannot be read: No such file",
    ),
    "no classes": (wrote("wnids.txt", ""), "tiny/wnids.txt is empty"),
    "no text": (wrote("words.txt", b"n01\t\xff"), "tiny/words.txt must be UTF-8 text"),
    "unknown class in the table": (
        wrote("val/val_annotations.txt", TABLE + "val_3.JPEG\tn09\t0\t0\t1\t1\n"),
        "tiny/val/val_annotations.txt: line 4 must be an image and its class of wnids.txt, not 'val_3.JPEG\\tn09\\t0",
    ),
    "no class in the table": (wrote("val/val_annotations.txt", "val_0.JPEG\n"), "val_annotations.txt: line 1 must be"),
    "a class twice": (
        wrote("wnids.txt", "n03\nn01\nn02\nn01\n"),
        "wnids.txt: line 4 must be one more class, not 'n01'",
    ),
    "a blank line": (wrote("wnids.txt", "n03\n\nn01\nn02\n"), "wnids.txt: line 2 must be one more class, not ''"),
    "an image twice": (
        wrote("val/val_annotations.txt", TABLE + "val_0.JPEG\tn03\t0\t0\t1\t1\n"),
        "val_annotations.txt: line 4 must be one more image, not 'val_0.JPEG'",
    ),
    "missing image": (
        lambda folder: (folder / "val" / "images" / "val_2.JPEG").unlink(),
        "tiny/val/images/val_2.JPEG cannot be read: No such file",
    ),
    "missing class": (wrote("wnids.txt", "n01\nn02\nn05\n"), "tiny/train/n05/images cannot be read: No such file"),
}


@pytest.mark.parametrize(("break_it", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders_are_refused_in_one_sentence(
    folder: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    break_it(folder)
    refused(folder, sentence)
