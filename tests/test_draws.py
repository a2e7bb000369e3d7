"""What an iteration draws: real images, augmentations, networks; each keyed, none of them drawn twice."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine import ALL, make_distiller, make_pool, make_state, record_keys, toy
from torch import Tensor

from ddfast import keyed
from ddfast.augment import DRAWS, STRATEGY, tabulate, transform
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.loop import BLOCK
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Pool


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=4, per_class=12, channels=3)


@pytest.fixture(scope="module")
def pool(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), dataset)


def config(**keys: Any) -> Config:
    return Config(**{"ipc": 2, "batch_real": 8, "width": 8, "depth": 2, "pool": "given", **keys})


class TestDraws:
    @pytest.fixture
    def caught(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
        """The images that are augmented, and the table by which."""
        calls: list[tuple[Tensor, Tensor]] = []

        def catch(images: Tensor, table: Tensor) -> Tensor:
            calls.append((images.detach().clone(), table.clone()))
            return transform(images, table)

        monkeypatch.setattr("ddfast.distill.loop.transform", catch)
        return calls

    @pytest.fixture
    def iterate(self, dataset: Dataset, pool: Pool) -> Callable[[int], None]:
        settings = config(**ALL)
        distiller = make_distiller(settings, dataset, pool, Plan(2, 99, 99, 3))

        def iterate(number: int) -> None:
            state = make_state(settings, dataset)
            state.iteration = number
            distiller.iterate(state)

        return iterate

    def real_rows(self, caught: list[Any], dataset: Dataset) -> list[list[int]]:
        """The numbers of the training images in every class's real batch."""
        everything = dataset.normalise(dataset.train.images).flatten(1)
        batches = [group for images, _ in caught if images.shape[1] == 8 for group in images]
        assert len(batches) == 4
        found = [(group.flatten(1)[:, None] == everything).all(2) for group in batches]
        assert all((match.sum(1) == 1).all() for match in found)
        return [match.int().argmax(1).tolist() for match in found]

    def test_real_images_are_of_the_class_and_all_different(
        self, caught: list[Any], iterate: Callable[[int], None], dataset: Dataset
    ) -> None:
        iterate(0)
        for k, rows in enumerate(self.real_rows(caught, dataset)):
            assert len(set(rows)) == 8
            assert {int(dataset.train.labels[row]) for row in rows} == {k}

    def test_real_images_are_drawn_anew(
        self, caught: list[Any], iterate: Callable[[int], None], dataset: Dataset
    ) -> None:
        seen = []
        for number in (0, 1, 2, 0):
            caught.clear()
            iterate(number)
            seen.append(self.real_rows(caught, dataset))
        assert seen[0] == seen[3]
        assert seen[0] != seen[1] != seen[2] != seen[0]
        offsets = [[row - rows_class * 12 for row in rows] for rows_class, rows in enumerate(seen[0])]
        assert len({tuple(rows) for rows in offsets}) == 4

    def test_both_sides_and_centralization_share_their_augmentation(
        self, caught: list[Any], iterate: Callable[[int], None]
    ) -> None:
        iterate(3)
        assert [len(images[0]) for images, _ in caught] == [8, 2, 2] * 2
        for first in (0, 3):
            for _, table in caught[first : first + 3]:
                assert torch.equal(table, caught[first][1])
        draws = keyed.uniform(0, 3, torch.arange(4), "augmentation", DRAWS)
        assert torch.equal(torch.cat([caught[0][1], caught[3][1]]), tabulate(draws, STRATEGY, (8, 8)))
        assert len(draws.unique()) == 4 * DRAWS

    def test_networks_are_fresh_every_iteration(self, dataset: Dataset) -> None:
        settings = config()
        distiller, state = make_distiller(settings, dataset, plan=Plan(1, 99, 99, 3)), make_state(settings, dataset)
        seen = []
        original = distiller.network.embed

        def embed(x: Tensor) -> Tensor:
            seen.append(torch.cat([p.flatten() for p in distiller.network.parameters()]).clone())
            return original(x)

        distiller.network.embed = embed  # type: ignore[method-assign]
        for _ in range(3):
            distiller.iterate(state)
        groups = torch.stack(seen).unflatten(0, (3, -1))
        assert (groups == groups[:, :1]).all(), "one network for all chunks of an iteration"
        assert len({tuple(group[0].tolist()) for group in groups}) == 3

    def test_pool_members_are_keyed_and_equally_likely(self, pool: Pool, dataset: Dataset) -> None:
        drawn = [pool.choice(0, number) for number in range(3000)]
        assert drawn == [pool.choice(0, number) for number in range(3000)]
        assert drawn != [pool.choice(1, number) for number in range(3000)]
        assert all(abs(drawn.count(network) - 1000) < 110 for network in range(3))
        again = [after for member, after in itertools.pairwise(drawn) if member == 0]
        assert all(abs(again.count(network) / len(again) - 1 / 3) < 0.06 for network in range(3))

    def test_every_number_has_one_use(self, iterate: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
        """What is drawn for one purpose says nothing about another; augmentations are drawn for a block at once."""
        keys = record_keys(monkeypatch)
        for number in (0, 1, BLOCK - 1):
            iterate(number)
        assert len(keys) == len(set(keys)) == BLOCK * 4 + 3 * (4 + 1 + 1)

    def test_an_iteration_has_the_augmentations_of_its_own_whatever_the_block(
        self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bit for bit those that are drawn and tabulated for it alone, in any order of iterations."""
        distiller = make_distiller(config(seed=5), dataset)
        for number in (*range(3 * BLOCK), 7, 8, 1000):
            draws = keyed.uniform(5, number, torch.arange(4), "augmentation", DRAWS)
            assert torch.equal(distiller._tabulated(number), tabulate(draws, distiller.strategy, dataset.size))
        again = []
        monkeypatch.setattr("ddfast.distill.loop.tabulate", lambda *given: again.append(1) or tabulate(*given))
        for number in range(3 * BLOCK):
            distiller._tabulated(number)
        assert len(again) == 3

    def test_global_random_state_plays_no_part(self, dataset: Dataset, pool: Pool) -> None:
        settings, ends = config(**ALL), []
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            state = make_state(settings, dataset)
            make_distiller(settings, dataset, pool).iterate(state)
            assert torch.equal(torch.get_rng_state(), before)
            ends.append(state.images)
        assert torch.equal(*ends)
