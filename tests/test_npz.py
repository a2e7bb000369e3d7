"""Folders of npz files, and loading by name or by path."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from ddfast.data import load, load_npz
from ddfast.errors import UserError


def write(folder: Path, name: str, **changes: object) -> None:
    """An npz file of six images of three classes; a change of None leaves the array out."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    arrays = {"images": images, "labels": np.array([2, 1, 0, 0, 1, 2])} | changes
    np.savez(folder / name, **{key: value for key, value in arrays.items() if value is not None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    folder.mkdir()
    write(folder, "train.npz")
    write(folder, "test.npz")
    return folder


class TestNpz:
    def test_reads_images_and_labels(self, folder: Path) -> None:
        dataset = load_npz(folder)
        assert (dataset.name, dataset.classes, dataset.train.counts) == ("shapes", ("0", "1", "2"), (2, 2, 2))
        assert (dataset.channels, dataset.size) == (3, (4, 5))
        first = np.load(folder / "train.npz")["images"][2]
        assert torch.equal(dataset.train.images[0], torch.from_numpy(first).permute(2, 0, 1))

    @pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4, 4, 1)])
    def test_grey_images(self, folder: Path, shape: tuple[int, ...]) -> None:
        write(folder, "train.npz", images=np.ones(shape, np.uint8))
        write(folder, "test.npz", images=np.ones((6, 4, 4), np.uint8))
        assert load_npz(folder).train.images.shape == (6, 1, 4, 4)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, ">i2"])
    def test_labels_of_any_integers(self, folder: Path, dtype: str) -> None:
        write(folder, "train.npz", labels=np.array([0, 1, 2, 2, 1, 0], dtype))
        assert load_npz(folder).train.labels.tolist() == [0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize(
        "text", ["cat\ndog\nrare bird\n", "\ufeffcat\r\ndog\r\nrare bird", "n1\tcat\nn2\tdog\nn3\trare bird\n\n"]
    )
    def test_class_names(self, folder: Path, text: str) -> None:
        (folder / "classes.txt").write_bytes(text.encode())
        assert load_npz(folder).classes == ("cat", "dog", "rare bird")

    def test_a_class_may_lack_test_images(self, folder: Path) -> None:
        write(folder, "test.npz", labels=np.zeros(6, int))
        assert load_npz(folder).test.counts == (6, 0, 0)

    def test_without_test_npz_the_test_split_is_empty(self, folder: Path) -> None:
        (folder / "test.npz").unlink()
        assert not load_npz(folder).has_test
        assert load(str(folder), holdout=0.5).test.counts == (1, 1, 1)

    def test_labels_may_be_a_column(self, folder: Path) -> None:
        before = load_npz(folder).train.images
        write(folder, "train.npz", labels=np.array([2, 1, 0, 0, 1, 2])[:, None])
        assert torch.equal(load_npz(folder).train.images, before)

    def test_channels_may_come_first(self, folder: Path) -> None:
        before = load_npz(folder).train.images
        write(folder, "train.npz", images=np.load(folder / "train.npz")["images"].transpose(0, 3, 1, 2))
        assert torch.equal(load_npz(folder).train.images, before)

    @pytest.mark.parametrize("make", [lambda x: x / 255, lambda x: x.astype(float), lambda x: x.astype(np.int64)])
    def test_pixels_may_be_other_numbers(self, folder: Path, make: Callable[[np.ndarray], np.ndarray]) -> None:
        before = load_npz(folder).train.images
        write(folder, "train.npz", images=make(np.load(folder / "train.npz")["images"]))
        assert torch.equal(load_npz(folder).train.images, before)

    def test_a_data_set_of_one_class_is_refused(self, folder: Path) -> None:
        for name in ("train.npz", "test.npz"):
            write(folder, name, labels=np.zeros(6, int))
        with pytest.raises(UserError, match="shapes must have at least two classes to tell apart, but has 0 alone"):
            load_npz(folder)

    def test_other_arrays_are_not_read(self, folder: Path) -> None:
        write(folder, "train.npz", notes=np.array([{"a": 1}], dtype=object))
        assert load_npz(folder).num_classes == 3

    @pytest.mark.parametrize("keep", [0, 1, 10, 0.2, 0.5, 0.9, -1])
    def test_a_truncated_file(self, folder: Path, keep: float) -> None:
        whole = (folder / "test.npz").read_bytes()
        (folder / "test.npz").write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
        refused(folder, "test.npz is not an npz file, or is damaged or cut short")

    def test_no_damaged_byte_escapes_as_another_error(self, folder: Path) -> None:
        whole = (folder / "train.npz").read_bytes()
        rng = np.random.default_rng(0)
        for place in rng.choice(len(whole), 300, replace=False):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (folder / "train.npz").write_bytes(damaged)
            with suppress(UserError):
                load_npz(folder)

    @pytest.mark.parametrize("name", ["train.npz", "classes.txt"])
    def test_permission_denied(self, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        (folder / "classes.txt").write_text("a\nb\nc")
        really_open = Path.open

        def locked(self: Path, *args: object, **kwargs: object) -> object:
            if self.name == name:
                raise PermissionError(13, "Permission denied")
            return really_open(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", locked)
        refused(folder, f"{name} cannot be read: Permission denied")

    def test_folder_that_may_not_be_listed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def locked(path: object) -> list[str]:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "listdir", locked)
        refused(folder, "shapes: Permission denied; expected a folder with train.npz")


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert sentence in message
    assert str(folder) in message
    assert "\n" not in message


def replaced(name: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: write(folder, name, **changes)


def named(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "classes.txt").write_bytes(text) and None


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def gone(folder: Path) -> None:
    emptied(folder)
    folder.rmdir()


def a_file(folder: Path) -> None:
    gone(folder)
    folder.write_text("not a folder")


def a_folder_inside(folder: Path) -> None:
    (folder / "train.npz").unlink()
    (folder / "train.npz").mkdir()


def a_lone_array(folder: Path) -> None:
    with (folder / "train.npz").open("wb") as file:
        np.save(file, np.zeros(3))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (gone, "shapes: No such file or directory; expected a folder with train.npz and test.npz"),
    "a file": (a_file, "shapes: Not a directory; expected a folder with train.npz and test.npz"),
    "empty folder": (
        emptied,
        "has no train.npz: it is empty; expected train.npz and test.npz, each with",
    ),
    "missing file": (lambda folder: (folder / "train.npz").unlink(), "has no train.npz: it holds test.npz; expected"),
    "folder as file": (a_folder_inside, "train.npz cannot be read: Is a directory"),
    "text": (lambda folder: (folder / "train.npz").write_text("hello"), "train.npz is not an npz file"),
    "npy": (a_lone_array, "train.npz is not an npz file"),
    "objects": (
        replaced("train.npz", images=np.array([np.ones(2), np.ones(3)], dtype=object)),
        "train.npz: its images or labels are damaged, or pickled Python objects",
    ),
    "no labels": (
        replaced("test.npz", labels=None, y=np.ones(6)),
        "test.npz: no array called labels, it holds images, y",
    ),
    "no arrays": (
        replaced("test.npz", images=None, labels=None),
        "test.npz: no array called images or labels, it holds nothing",
    ),
    "normalised images": (
        replaced("train.npz", images=np.linspace(-2, 2, 360, dtype=np.float32).reshape(6, 4, 5, 3)),
        "train.npz: images must be pixels from 0 to 1 or from 0 to 255, but they are from -2 to 2",
    ),
    "infinite images": (
        replaced("train.npz", images=np.full((6, 4, 5, 3), np.inf)),
        "train.npz: images must be finite",
    ),
    "integers beyond bytes": (
        replaced("train.npz", images=np.full((6, 4, 5, 3), 256)),
        "train.npz: images must be from 0 to 255, not from 256 to 256",
    ),
    "complex images": (
        replaced("train.npz", images=np.ones((6, 4, 5, 3), np.complex64)),
        "train.npz: images must be numbers, not complex64",
    ),
    "flat images": (
        replaced("train.npz", images=np.ones((6, 60), np.uint8)),
        "train.npz: images must be (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, or (N, H, W), not (6, 60)",
    ),
    "two channels": (
        replaced("train.npz", images=np.ones((6, 2, 4, 5), np.uint8)),
        "train.npz: images must be (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, or (N, H, W), not (6, 2, 4, 5)",
    ),
    "no images": (
        replaced("test.npz", images=np.ones((0, 4, 5, 3), np.uint8), labels=np.ones(0, int)),
        "test.npz: there must be at least one image, but images is (0, 4, 5, 3)",
    ),
    "float labels": (replaced("train.npz", labels=np.ones(6)), "train.npz: labels must be integers, not float64"),
    "one-hot labels": (
        replaced("train.npz", labels=np.ones((6, 3), int)),
        "train.npz: labels must be (6,), one for each image, not (6, 3)",
    ),
    "too few labels": (
        replaced("train.npz", labels=np.ones(5, int)),
        "train.npz: labels must be (6,), one for each image, not (5,)",
    ),
    "negative labels": (
        replaced("train.npz", labels=np.array([0, 1, 2, -1, 0, 1])),
        "train.npz: labels must be 0 or more, not -1",
    ),
    "other size": (
        replaced("test.npz", images=np.ones((6, 5, 5, 3), np.uint8)),
        "test.npz: an image is (5, 5, 3), but (4, 5, 3) in train.npz",
    ),
    "class without training images": (
        replaced("train.npz", labels=np.array([0, 0, 0, 2, 2, 2])),
        "train.npz: class 1 has no training image, but every class needs one; numpy.unique(labels, "
        "return_inverse=True)[1] numbers the 2 classes from 0",
    ),
    "class in test only": (
        replaced("test.npz", labels=np.array([0, 1, 2, 3, 0, 0])),
        "train.npz: class 3 has no training image",
    ),
    "huge label": (
        replaced("train.npz", labels=np.array([0, 1, 2, 2**63 + 5, 0, 0], np.uint64)),
        "train.npz: class 3 has no training image",
    ),
    "named class without training images": (
        named(b"cat\ndog\nbird\nunicorn\n"),
        "train.npz: class 3 (unicorn) has no training image",
    ),
    "too few names": (named(b"cat\ndog\n"), "classes.txt: 2 classes are named, but the labels go up to 2"),
    "no names": (named(b"\n"), "classes.txt: 0 classes are named, but the labels go up to 2"),
    "empty name": (named(b"cat\n\nbird\n"), "classes.txt: line 2 must name a class, but is empty"),
    "names not in UTF-8": (named(b"caf\xe9\n"), "classes.txt must be UTF-8 text with one class name a line"),
}


@pytest.mark.parametrize(("break_it", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders_are_refused_in_one_sentence(
    folder: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    break_it(folder)
    refused(folder, sentence)


class TestLoad:
    def test_by_name_and_by_path(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert load("digits").name == "digits"
        assert load(str(folder)).name == "shapes"
        monkeypatch.setenv("HOME", str(folder.parent))
        assert load("~/shapes").name == "shapes"
        monkeypatch.chdir(folder)
        assert load(".").name == "shapes"

    def test_passes_everything_on(self) -> None:
        dataset = load("digits", holdout=0.25, mean=(0.5,), std=(0.25,), device="meta")
        assert (dataset.mean, dataset.std) == ((0.5,), (0.25,))
        assert sum(dataset.train.counts) + sum(dataset.test.counts) == 1198
        assert dataset.test.images.device.type == "meta"

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("Digit", "; did you mean digits?"),
            ("CIFAR-10", "; did you mean cifar10?"),
            ("imagenet", "; did you mean tiny-imagenet?"),
            ("birds", ""),
            ("", ""),
        ],
    )
    def test_unknown_names(self, name: str, hint: str) -> None:
        with pytest.raises(UserError) as caught:
            load(name)
        known = "digits, cifar10, cifar100, svhn, mnist, fashion-mnist, tiny-imagenet, hf:NAME"
        assert str(caught.value) == f"data {name!r} is neither a folder nor a known data set ({known}){hint}"


@pytest.mark.skipif("DDFAST_DATA" not in os.environ, reason="DDFAST_DATA names no folder with cifar10/train.npz")
def test_cifar10() -> None:
    dataset = load(os.path.join(os.environ["DDFAST_DATA"], "cifar10"))
    assert (dataset.num_classes, dataset.channels, dataset.size) == (10, 3, (32, 32))
    assert dataset.train.counts == (5000,) * 10
    assert dataset.test.counts == (1000,) * 10
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert dataset.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
