import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddfast import keyed
from ddfast.data import Dataset, Split, load_digits
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
            ({"std": (1, 0, 1)}, r"std must be positive and at most 1, for pixels in \[0, 1\], not 1, 0, 1"),
            (
                {"std": (1, float("nan"), 1)},
                r"std must be positive and at most 1, for pixels in \[0, 1\], not 1, nan, 1",
            ),
            ({"mean": (0.5, 0.5, 77.9)}, r"mean must be between 0 and 1, for pixels in \[0, 1\], not 0.5, 0.5, 77.9"),
            ({"mean": (0.5, -0.1, 0.5)}, r"mean must be between 0 and 1, for pixels in \[0, 1\], not 0.5, -0.1, 0.5"),
            ({"std": (95.9, 1, 1)}, r"std must be positive and at most 1, for pixels in \[0, 1\], not 95.9, 1, 1"),
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
