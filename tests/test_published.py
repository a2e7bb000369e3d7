"""The published loop and ddfast's make the same step where they are dealt the same hand: in float64, to rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import ALL, make_distiller, make_pool, make_state, toy

from benchmarks.baselines.published import Choices, ConvNet, Published, ResNet18, augment, save_network
from ddfast import keyed
from ddfast.augment import DRAWS, STRATEGY
from ddfast.augment import augment as ours
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.loop import TERMS
from ddfast.distill.pool import Pool
from ddfast.networks import build, draw_weights

CPU = torch.device("cpu")
ZERO = dict.fromkeys(ALL, 0.0)
CASES: dict[str, dict[str, Any]] = {
    "dm": {**ZERO, "mean_weight": 1.0},
    "iid-dm": {**ZERO, "mean_weight": 1.0, "covariance_weight": 0.01, "centralization_weight": 0.05},
    "cmi-dm": {**ZERO, "mean_weight": 1.0, "cmi_weight": 8000.0},
    "all": {"mean_weight": 1.0, "covariance_weight": 0.3, "centralization_weight": 0.05, "cmi_weight": 500.0},
    "all, rows": {**ALL, "covariance_weight": 0.3, "local": "rows"},
    "all, not augmented": {**ALL, "augmentation": "none"},
    "all, IPC 1": {**ALL, "ipc": 1},
}
KEYS = {"ipc": 3, "batch_real": 8, "width": 8, "depth": 2, "pool": "given", "image_lr": 0.7, "image_momentum": 0.6}


class KeyedChoices(Choices):
    """What ddfast draws."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.iteration = 0
        self.ours = make_distiller(config, dataset).network.double()

    def network(self) -> ConvNet:
        draw_weights(self.ours, keyed.generator(self.config.seed, self.iteration, "matching network", CPU))
        network = super().network().double()
        network.load_state_dict(self.ours.state_dict())
        return network

    def member(self, count: int) -> int:
        draw = keyed.uniform(self.config.seed, self.iteration, torch.zeros(1, dtype=torch.int64), "pool member", 1)
        return int(draw * count)

    def real(self, of_class: int, rows: np.ndarray, count: int) -> np.ndarray:
        most = max(self.dataset.train.counts)
        scores = keyed.bits(self.config.seed, self.iteration, torch.tensor([of_class]), "real images", most)
        return rows[scores[0, : len(rows)].argsort()[:count].numpy()]

    def augmentation(self, of_class: int) -> list[float]:
        label = torch.tensor([of_class])
        return keyed.uniform(self.config.seed, self.iteration, label, "augmentation", DRAWS)[0].tolist()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=4, per_class=12, channels=3)


@pytest.fixture(scope="module")
def pool(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), dataset)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in float64, of which all else follows."""
    narrow = Dataset.normalise
    monkeypatch.setattr(Dataset, "normalise", lambda self, images: narrow(self, images).double())


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("case", CASES)
def test_several_steps_are_those_of_ddfast(case: str, dataset: Dataset, pool: Pool, tmp_path: Path) -> None:
    config = Config(**{**KEYS, **CASES[case]})
    files = [save_network(network, tmp_path / str(i)) for i, network in enumerate(pool.networks)]
    distiller = make_distiller(config, dataset, pool)
    for network in (distiller.network, pool.member, *pool.networks):
        network.double()
    state = make_state(config, dataset)
    state.images, state.momentum = state.images.double(), torch.zeros_like(state.images, dtype=torch.float64)
    choices = KeyedChoices(config, dataset)
    published = Published(config, dataset, state.images, files, choices)
    for iteration in range(3):
        choices.iteration = iteration
        before = state.images.clone()
        theirs = published.iterate()
        terms = distiller.report(distiller.iterate(state))
        for name in distiller.weights:
            assert terms[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-12), name  # reported in float32
        assert list(theirs) == list(TERMS)[: len(ALL)], "all but the cross-entropy, which is IDM's"
        moved = (state.images - before).norm()
        assert moved > 0
        assert (published.images.detach() - state.images).norm() <= 1e-9 * moved


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 9, 7)], ids=str)
@pytest.mark.parametrize("operation", STRATEGY)
def test_augmentations_are_those_of_ddfast(operation: str, size: tuple[int, ...]) -> None:
    images = torch.randn(20, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = torch.cat([torch.tensor([[0.0] * 4, [0.99999994] * 4]), keyed.uniform(0, 0, torch.arange(18), "test", 4)])
    expected = ours(images, draws, (operation,))
    for group, row, right in zip(images, draws, expected, strict=True):
        torch.testing.assert_close(augment(group, (operation,), row.tolist()), right)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
@pytest.mark.parametrize("extent", [32, 64])
def test_networks_are_those_of_ddfast(name: str, extent: int) -> None:
    keys = {"channels": 3, "num_classes": 5, "size": (extent, extent), "width": 4}
    network = build(name, **keys, device="cpu", generator=torch.Generator().manual_seed(0)).double()
    theirs = {"convnet": ConvNet, "resnet18": ResNet18}[name](**network.config).double()
    theirs.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, extent, extent, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(theirs.features(images), network.features(images))


def test_what_the_scripts_leave_to_chance(dataset: Dataset) -> None:
    choices = Choices(Config(**KEYS), dataset)
    first, second = (choices.network().head.weight for _ in range(2))
    assert not torch.equal(first, second)
    rows = np.arange(5, 17)
    drawn = [choices.real(0, rows, 6).tolist() for _ in range(20)]
    assert all(len(set(row)) == 6 and set(row) <= set(rows) for row in drawn)
    assert len(set(map(tuple, drawn))) > 1
    assert {choices.member(3) for _ in range(60)} == {0, 1, 2}
    assert all(0 <= u < 1 for _ in range(20) for u in choices.augmentation(0))
