"""Data sets by name: where they are looked for, torchvision's through a stand-in, and real ones where they are."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine import save_npz, toy
from pictures import refused, save_image_folder

from ddfast.data import load

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
KINDS = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDFAST_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def arrays(train: bool, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """20 training or 10 test images of ten classes, in no order."""
    rng = np.random.default_rng(train)
    count = 20 if train else 10
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.permutation(np.arange(count) % 10)


class Stand:
    """torchvision.datasets as far as it goes: signatures and attributes of its classes, and every call of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        module = ModuleType("torchvision")
        module.datasets = SimpleNamespace(
            CIFAR10=self._cifar, CIFAR100=self._cifar, SVHN=self._svhn, MNIST=self._mnist, FashionMNIST=self._mnist
        )
        monkeypatch.setitem(sys.modules, "torchvision", module)

    def _cifar(self, root: Path, train: bool = True, download: bool = False) -> SimpleNamespace:
        self.calls.append((root, train, download))
        data, labels = arrays(train, (32, 32, 3))
        return SimpleNamespace(data=data, targets=labels.tolist(), classes=[f"class {k}" for k in range(10)])

    def _svhn(self, root: Path, split: str = "train", download: bool = False) -> SimpleNamespace:
        assert split in ("train", "test")
        self.calls.append((root, split == "train", download))
        data, labels = arrays(split == "train", (3, 32, 32))
        return SimpleNamespace(data=data, labels=labels)

    def _mnist(self, root: Path, train: bool = True, download: bool = False) -> SimpleNamespace:
        self.calls.append((root, train, download))
        data, labels = (torch.from_numpy(array) for array in arrays(train, (28, 28)))
        return SimpleNamespace(data=data, targets=labels, classes=[f"class {k}" for k in range(10)])


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(monkeypatch)


class TestTorchvision:
    @pytest.mark.parametrize("name", KINDS)
    def test_images_and_labels_are_its(self, root: Path, torchvision: Stand, name: str) -> None:
        dataset = load(name)
        shape = {"svhn": (3, 32, 32), "mnist": (28, 28), "fashion-mnist": (28, 28)}.get(name, (32, 32, 3))
        for split, train in ((dataset.train, True), (dataset.test, False)):
            images, labels = (torch.from_numpy(array) for array in arrays(train, shape))
            images = images.reshape(-1, 1, 28, 28) if "mnist" in name else images
            images = images.permute(0, 3, 1, 2) if "cifar" in name else images
            order = labels.argsort(stable=True)
            assert torch.equal(split.images, images[order])
            assert torch.equal(split.labels, labels[order])
        assert dataset.name == name
        assert dataset.classes == tuple(str(k) if name == "svhn" else f"class {k}" for k in range(10))

    def test_is_downloaded_into_the_folder_of_all_data(self, root: Path, torchvision: Stand) -> None:
        load("svhn")
        assert torchvision.calls == [(root, True, True), (root, False, True)]

    def test_which_lies_below_the_home_folder(
        self, tmp_path: Path, torchvision: Stand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DDFAST_DATA", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        load("mnist")
        assert torchvision.calls[0][0] == tmp_path / ".cache" / "ddfast" / "data"

    @pytest.mark.parametrize("name", KINDS)
    def test_statistics_are_those_published_or_measured(self, root: Path, torchvision: Stand, name: str) -> None:
        dataset = load(name)
        pixels = arrays(True, (28, 28))[0] / 255
        mean, std = STATISTICS.get(name, ((pixels.mean(),), (pixels.std(),)))
        assert dataset.mean == pytest.approx(mean, rel=1e-9)
        assert dataset.std == pytest.approx(std, rel=1e-9)
        own = (0.5,) * dataset.channels
        assert load(name, mean=own).mean == own
        assert load(name, mean=own).std == dataset.std
        assert load(name, std=own).std == own

    def test_nobody_s_home_folder(self, torchvision: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DDFAST_DATA", "~nobody at all/data")
        refused("mnist", "~nobody at all/data lies in a home folder that is unknown; DDFAST_DATA names another folder")

    def test_missing_scipy(self, root: Path, torchvision: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
        def read(*arguments: object, **keys: object) -> None:
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

        monkeypatch.setattr(sys.modules["torchvision"].datasets, "SVHN", read)
        needs = "svhn is read by torchvision with scipy, which is missing"
        refused("svhn", f"{needs}: pip install 'ddfast[torchvision]'")

    def test_missing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
        refused("cifar10", "cifar10 comes from torchvision, which cannot be imported (")
        refused("cifar10", f"pip install 'ddfast[torchvision]', or put train.npz and test.npz into {root}/cifar10")

    @pytest.mark.parametrize("error", [RuntimeError("no file"), OSError("no network"), ImportError("no scipy")])
    def test_no_download(
        self, root: Path, torchvision: Stand, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*arguments: object, **keys: object) -> None:
            raise error

        monkeypatch.setattr(sys.modules["torchvision"].datasets, "CIFAR100", fail)
        refused("cifar100", f"cifar100 cannot be loaded by torchvision from {root}: {error}")


class TestFolders:
    @pytest.mark.parametrize("name", [*KINDS, "tiny-imagenet"])
    def test_npz_files_come_first(self, root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
        (root / "elsewhere").mkdir()
        (root / name).symlink_to("elsewhere")
        save_npz(root / "elsewhere", toy(channels=1 if "mnist" in name else 3))
        dataset = load(name)
        assert (dataset.name, dataset.train.counts) == (name, (12, 12, 12))
        measured = toy(channels=1)
        assert (dataset.mean, dataset.std) == STATISTICS.get(name, (measured.mean, measured.std))

    def test_a_name_is_no_folder(self, root: Path, torchvision: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(root)
        save_npz(root / "elsewhere" / "cifar10", toy())
        monkeypatch.chdir(root / "elsewhere")
        assert load("cifar10").size == (32, 32)
        assert load("./cifar10").size == (8, 8)

    def test_tiny_imagenet_may_be_image_files(self, root: Path) -> None:
        save_image_folder(root / "tiny-imagenet", "val", width=7)
        dataset = load("tiny-imagenet", image_size=4)
        assert (dataset.name, dataset.size, dataset.train.counts) == ("tiny-imagenet", (4, 4), (4, 4, 4))
        assert (dataset.mean, dataset.std) == STATISTICS["tiny-imagenet"]

    def test_tiny_imagenet_is_not_downloaded(self, root: Path) -> None:
        refused("tiny-imagenet", f"{root}/tiny-imagenet does not exist: expected the files of tiny-imagenet as")


def real(name: str) -> Any:
    there = (Path(os.environ.get("DDFAST_DATA", "/nowhere")) / name / "train.npz").exists()
    return pytest.mark.skipif(not there, reason=f"DDFAST_DATA names no folder with {name}/train.npz")


class TestReal:
    @real("cifar10")
    def test_cifar10(self) -> None:
        dataset = load("cifar10")
        assert (dataset.name, dataset.num_classes, dataset.channels, dataset.size) == ("cifar10", 10, 3, (32, 32))
        assert (dataset.train.counts, dataset.test.counts) == ((5000,) * 10, (1000,) * 10)
        assert (dataset.mean, dataset.std) == STATISTICS["cifar10"]
        normal = dataset.normalise(dataset.train.images[::10])
        assert normal.mean((0, 2, 3)).abs().max() < 0.02
        # Published deviations are means over the images' own, so that over all pixels is larger.
        assert normal.std((0, 2, 3)).tolist() == pytest.approx([1.22, 1.22, 1.30], abs=0.02)

    @real("tiny-imagenet")
    def test_tiny_imagenet(self) -> None:
        dataset = load("tiny-imagenet")
        assert (dataset.name, dataset.num_classes, dataset.channels, dataset.size) == (
            "tiny-imagenet",
            200,
            3,
            (64, 64),
        )
        assert len(set(dataset.train.counts)) == 1
        assert dataset.train.counts[0] >= 50
        assert dataset.test.counts == (50,) * 200
        assert (dataset.mean, dataset.std) == STATISTICS["tiny-imagenet"]
        assert dataset.classes[:2] == ("goldfish, Carassius auratus", "European fire salamander, Salamandra salamandra")
        normal = dataset.normalise(dataset.train.images[::20])
        assert normal.mean((0, 2, 3)).abs().max() < 0.1
