import os
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddfast import keyed
from ddfast.data import Dataset, Split, load, load_digits, load_npz
from ddfast.data.dataset import channel_statistics
from ddfast.errors import UserError

COUNTS = (7, 12, 5, 30)


def numbered(counts: tuple[int, ...], start: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled images (N, 2, 2, 3) whose first two pixels spell their number, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images = rng.integers(0, 256, (len(labels), 2, 2, 3), dtype=np.uint8)
    number = np.arange(start, start + len(labels))
    images[:, 0, 0, 0], images[:, 0, 1, 0] = number // 256, number % 256
    return images, labels


def numbers(split: Split) -> list[int]:
    """The number of every image, in the order of the rows."""
    return (split.images[:, 0, 0, 0].long() * 256 + split.images[:, 0, 0, 1]).tolist()


@pytest.fixture
def split() -> Split:
    return Split.from_arrays(*numbered(COUNTS), len(COUNTS))


@pytest.fixture
def dataset(split: Split) -> Dataset:
    test = Split.from_arrays(*numbered((3, 3, 3, 3), start=1000), len(COUNTS))
    return Dataset.from_splits("numbers", split, test, "abcd")


def scores(split: Split, classes: torch.Tensor, iteration: int = 0) -> torch.Tensor:
    return keyed.bits(3, iteration, classes, "real", max(split.counts))


class TestSplit:
    def test_sorts_by_class_and_keeps_the_order_within(self, split: Split) -> None:
        images, labels = numbered(COUNTS)
        assert split.labels.tolist() == sorted(labels)
        assert numbers(split) == np.argsort(labels, kind="stable").tolist()
        assert torch.equal(split.images[20], torch.from_numpy(images[numbers(split)[20]]).permute(2, 0, 1))
        assert split.images.is_contiguous()

    def test_counts_and_offsets_know_empty_classes(self) -> None:
        split = Split.from_arrays(np.zeros((3, 4, 4), np.uint8), np.array([3, 1, 3], np.uint8), 5)
        assert split.counts == (0, 1, 0, 2, 0)
        assert split.offsets.tolist() == [0, 0, 1, 1, 3, 3]
        assert split.images.shape == (3, 1, 4, 4)
        assert (split.labels.dtype, split.offsets.dtype) == (torch.int64, torch.int64)

    def test_choose_takes_the_smallest_scores(self, split: Split) -> None:
        classes = torch.tensor([2, 0, 3, 1])
        drawn = scores(split, classes)
        for row, label, given in zip(split.choose(classes, 5, drawn), classes, drawn, strict=True):
            own = given[: split.counts[label]]
            assert row.tolist() == (split.offsets[label] + own.argsort()[:5]).tolist()

    def test_choose_never_repeats_and_never_leaves_the_class(self, split: Split) -> None:
        classes = torch.arange(4)
        for iteration in range(200):
            rows = split.choose(classes, 5, scores(split, classes, iteration))
            assert torch.equal(split.labels[rows], classes[:, None].expand(4, 5))
            assert all(len(set(row)) == 5 for row in rows.tolist())

    def test_columns_beyond_a_class_lose_even_against_the_largest_score(self, split: Split) -> None:
        largest = torch.full((1, 30), torch.iinfo(torch.int64).max)
        assert sorted(split.choose(torch.tensor([2]), 5, largest)[0].tolist()) == list(range(19, 24))

    def test_choose_is_uniform(self, split: Split) -> None:
        draws, taken, of = 4000, 3, COUNTS[0]
        rows = torch.cat(
            [split.choose(torch.tensor([0]), taken, scores(split, torch.tensor([0]), i)) for i in range(draws)]
        )
        expected = draws * taken / of
        found = torch.bincount(rows.flatten(), minlength=of).double()
        # Without replacement the counts spread less than a multinomial's, by (1 - taken / of) and (of - 1) / of.
        statistic = ((found - expected) ** 2 / (expected * (1 - taken / of))).sum() * (of - 1) / of
        assert statistic < 22.5  # the 99.9 % point of chi-square with 6 degrees of freedom

    def test_choose_does_not_depend_on_the_chunks(self, split: Split) -> None:
        whole = torch.arange(4)
        parts = [split.choose(part, 5, scores(split, part)) for part in (whole[:1], whole[1:])]
        assert torch.equal(split.choose(whole, 5, scores(split, whole)), torch.cat(parts))

    def test_choose_reads_no_value_on_the_host(self, split: Split) -> None:
        away, classes = split.to("meta"), torch.arange(4, device="meta")
        assert away.choose(classes, 5, torch.empty(4, 30, dtype=torch.int64, device="meta")).shape == (4, 5)

    def test_choose_refuses_more_than_the_smallest_class(self, split: Split) -> None:
        with pytest.raises(UserError, match=r"6 images a class .* class 2 has 5"):
            split.choose(torch.tensor([3]), 6, scores(split, torch.tensor([3])))


class TestDataset:
    def test_statistics_are_those_of_numpy(self, dataset: Dataset) -> None:
        pixels = numbered(COUNTS)[0].astype(np.float64) / 255
        np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-12)

    def test_a_constant_channel_has_std_1(self) -> None:
        images = torch.zeros(4, 2, 3, 3, dtype=torch.uint8)
        images[:, 0], images[2:, 1] = 255, 51
        mean, std = channel_statistics(images)
        assert mean == pytest.approx((1.0, 0.1))
        assert std == pytest.approx((1.0, 0.1))

    def test_shape(self, dataset: Dataset) -> None:
        assert (dataset.channels, dataset.size, dataset.num_classes) == (3, (2, 2), 4)
        assert dataset.classes == ("a", "b", "c", "d")

    def test_normalised_pixels_have_mean_0_and_std_1(self, dataset: Dataset) -> None:
        normal = dataset.normalise(dataset.train.images)
        assert normal.dtype == torch.float32
        assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-6)
        assert torch.allclose(normal.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-6)

    def test_denormalise_undoes_normalise_and_clamps(self, dataset: Dataset) -> None:
        images = dataset.train.images[:12].unflatten(0, (3, 4))
        assert torch.allclose(dataset.denormalise(dataset.normalise(images)), images / 255, atol=1e-6)
        assert dataset.denormalise(torch.full((3, 2, 2), 1e3)).max() == 1
        assert dataset.denormalise(torch.full((3, 2, 2), -1e3)).min() == 0

    def test_normalise_leaves_its_argument_alone(self, dataset: Dataset) -> None:
        before = dataset.train.images.clone()
        dataset.normalise(dataset.train.images)
        assert torch.equal(dataset.train.images, before)

    def test_given_statistics_are_taken(self, dataset: Dataset) -> None:
        given = Dataset.from_splits("n", dataset.train, dataset.test, "abcd", std=(0.5, 0.25, 1))
        assert (given.mean, given.std) == (dataset.mean, (0.5, 0.25, 1))

    @pytest.mark.parametrize(
        ("statistics", "sentence"),
        [
            ({"mean": (0.5,)}, "mean must have one number a channel: 3 for n, not 1"),
            ({"std": (1, 1)}, "std must have one number a channel: 3 for n, not 2"),
            ({"std": (1, 0, 1)}, "std must be positive, not 1, 0, 1"),
            ({"std": (1, float("nan"), 1)}, "std must be positive, not 1, nan, 1"),
        ],
    )
    def test_wrong_statistics_are_refused(self, dataset: Dataset, statistics: dict, sentence: str) -> None:
        with pytest.raises(UserError, match=f"^{sentence}$"):
            Dataset.from_splits("n", dataset.train, dataset.test, "abcd", **statistics)

    def test_moves_as_a_whole(self, dataset: Dataset) -> None:
        away = dataset.to("meta")
        assert {away.train.images.device.type, away.test.labels.device.type, away.train.offsets.device.type} == {"meta"}
        assert away.normalise(away.train.images).device.type == "meta"
        assert away.train.counts == dataset.train.counts


class TestHoldout:
    def test_is_stratified(self, dataset: Dataset) -> None:
        held = dataset.holdout(0.2)
        assert held.test.counts == (1, 2, 1, 6)
        assert held.train.counts == (6, 10, 4, 24)

    @pytest.mark.parametrize(("fraction", "counts"), [(0.001, (1, 1, 1, 1)), (0.999, (6, 11, 4, 29))])
    def test_leaves_no_class_empty(self, dataset: Dataset, fraction: float, counts: tuple[int, ...]) -> None:
        assert dataset.holdout(fraction).test.counts == counts

    def test_splits_the_training_images_and_never_touches_the_test_images(self, dataset: Dataset) -> None:
        held = dataset.holdout(0.3)
        assert sorted(numbers(held.train) + numbers(held.test)) == list(range(sum(COUNTS)))
        assert set(numbers(held.test)).isdisjoint(numbers(dataset.test))
        label_of = dict(zip(numbers(dataset.train), dataset.train.labels.tolist(), strict=True))
        assert [label_of[number] for number in numbers(held.test)] == held.test.labels.tolist()

    def test_is_the_same_every_time_and_another_for_another_seed(self, dataset: Dataset) -> None:
        assert numbers(dataset.holdout(0.3).test) == numbers(dataset.holdout(0.3).test)
        assert numbers(dataset.holdout(0.3).test) != numbers(dataset.holdout(0.3, seed=1).test)

    def test_keeps_the_statistics(self, dataset: Dataset) -> None:
        assert (dataset.holdout(0.3).mean, dataset.holdout(0.3).std) == (dataset.mean, dataset.std)

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
    def test_refuses_a_fraction_outside_0_and_1(self, dataset: Dataset, fraction: float) -> None:
        with pytest.raises(UserError, match="holdout must lie between 0 and 1"):
            dataset.holdout(fraction)

    def test_refuses_a_class_of_one_image(self, dataset: Dataset) -> None:
        lonely = Split.from_arrays(*numbered((4, 1, 4, 4)), 4)
        with pytest.raises(UserError, match="class 1 has 1 images"):
            replace(dataset, train=lonely).holdout(0.5)


class TestDigits:
    def test_every_image_is_in_one_of_the_splits(self) -> None:
        from sklearn import datasets

        digits, file = load_digits(), datasets.load_digits()
        assert (sum(digits.train.counts), sum(digits.test.counts)) == (1198, 599)
        assert min(digits.train.counts) == 116
        assert min(digits.test.counts) == 58
        pixels = np.rint(file.data * 255 / 16).astype(np.uint8)
        ours = torch.cat([digits.train.images, digits.test.images]).flatten(1).numpy()
        labels = torch.cat([digits.train.labels, digits.test.labels]).numpy()
        theirs = np.column_stack([pixels, file.target]).tolist()
        assert sorted(np.column_stack([ours, labels]).tolist()) == sorted(theirs)

    def test_the_split_is_fixed(self) -> None:
        assert zlib.crc32(load_digits().test.images.numpy().tobytes()) == 3572917709

    def test_pixels(self) -> None:
        digits = load_digits()
        assert (digits.channels, digits.size, digits.classes) == (1, (8, 8), tuple("0123456789"))
        assert (int(digits.train.images.min()), int(digits.train.images.max())) == (0, 255)

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(UserError, match=r"pip install 'ddfast\[digits\]'"):
            load_digits()


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
        "has no train.npz and no test.npz: it is empty; expected train.npz and test.npz, each with",
    ),
    "missing file": (lambda folder: (folder / "test.npz").unlink(), "has no test.npz: it holds train.npz; expected"),
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
    "float images": (
        replaced("train.npz", images=np.ones((6, 4, 5, 3), np.float32)),
        "train.npz: images must be uint8 from 0 to 255, not float32",
    ),
    "flat images": (
        replaced("train.npz", images=np.ones((6, 60), np.uint8)),
        "train.npz: images must be (N, H, W, 3), (N, H, W, 1) or (N, H, W), not (6, 60)",
    ),
    "channels first": (
        replaced("train.npz", images=np.ones((6, 3, 4, 5), np.uint8)),
        "train.npz: images must be (N, H, W, 3), (N, H, W, 1) or (N, H, W), not (6, 3, 4, 5)",
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
        "train.npz: class 1 has no training image, but every class needs one",
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
        ("name", "sentence"),
        [
            ("Digit", r"data 'Digit' is neither a folder nor a known data set \(digits\); did you mean digits\?"),
            ("imagenet", r"data 'imagenet' is neither a folder nor a known data set \(digits\)"),
            ("", r"data '' is neither a folder nor a known data set \(digits\)"),
        ],
    )
    def test_unknown_names(self, name: str, sentence: str) -> None:
        with pytest.raises(UserError, match=f"^{sentence}$"):
            load(name)


@pytest.mark.skipif("DDFAST_DATA" not in os.environ, reason="DDFAST_DATA names no folder with cifar10/train.npz")
def test_cifar10() -> None:
    dataset = load(os.path.join(os.environ["DDFAST_DATA"], "cifar10"))
    assert (dataset.num_classes, dataset.channels, dataset.size) == (10, 3, (32, 32))
    assert dataset.train.counts == (5000,) * 10
    assert dataset.test.counts == (1000,) * 10
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert dataset.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
