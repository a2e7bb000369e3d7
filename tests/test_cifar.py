"""CIFAR's pickled batches, in small, as Python 2 wrote them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ddfast.data import load
from ddfast.errors import UserError

RNG = np.random.default_rng(0)


def pickled(path: Path, **content: object) -> None:
    """Protocol 2, as Python 2 wrote the originals: their words are bytes, which are read as Latin-1."""
    text = pickle.dumps(content, protocol=2)
    path.write_bytes(text.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))


def batch(path: Path, labels: list[int], name: str = "labels") -> np.ndarray:
    pixels = RNG.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
    pickled(path, data=pixels, **{name: labels}, filenames=["x.png"] * len(labels))
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(1, 6):
        batch(tmp_path / f"data_batch_{n}", [1, 0])
    batch(tmp_path / "test_batch", [0, 1, 1])
    pickled(tmp_path / "batches.meta", label_names=["cat", "dog"])
    return tmp_path


def test_cifar10_batches_are_joined_in_their_order(folder: Path) -> None:
    first = batch(folder / "data_batch_1", [1, 0])
    dataset = load(str(folder))
    assert (dataset.classes, dataset.train.counts, dataset.test.counts) == (("cat", "dog"), (5, 5), (1, 2))
    assert torch.equal(dataset.train.images[5], torch.from_numpy(first[0]).reshape(3, 32, 32))


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    batch(tmp_path / "train", [0, 1, 2, 0], "fine_labels")
    batch(tmp_path / "test", [2], "fine_labels")
    pickled(tmp_path / "meta", fine_label_names=["ant", "bee", "cup"], coarse_label_names=["a"])
    dataset = load(str(tmp_path))
    assert (dataset.classes, dataset.train.counts, dataset.test.counts) == (("ant", "bee", "cup"), (2, 1, 1), (0, 0, 1))


def test_code_in_a_batch_is_not_run(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (Path(folder / "was here"),)

    pickled(folder / "data_batch_3", data=Evil(), labels=[0])
    with pytest.raises(
        UserError, match=r"data_batch_3 is not a batch of CIFAR's Python version, or is damaged: it asks"
    ):
        load(str(folder))
    assert not (folder / "was here").exists()


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch"])
def test_missing_and_damaged_batches_are_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{name} is not a batch of CIFAR's Python version, or is damaged"):
        load(str(folder))
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        load(str(folder))
