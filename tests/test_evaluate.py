"""The evaluation protocol: its schedule, its batches, its draws, its arithmetic."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine import NO_PICTURES, SMALL, contents, ddfast, options, save_npz, sgd_step, toy
from rich.console import Console
from torch import Tensor, nn

from ddfast import keyed, training
from ddfast.augment import DRAWS, augment_batch, parse_strategy, tabulate_batch, transform
from ddfast.data import Dataset, Split
from ddfast.distill.config import Config
from ddfast.distill.subject import find_subject
from ddfast.evaluate import Protocol, evaluate_all, protocol
from ddfast.evaluate.protocol import evaluate_images, evaluate_random, evaluate_whole, steps
from ddfast.networks import Network
from ddfast.signals import Stop
from ddfast.training import build_network

CPU = torch.device("cpu")
QUICK = Protocol(width=4, depth=2, epochs=2, repeats=2)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=3, per_class=12, test=7)


def evaluated(dataset: Dataset, settings: Protocol, images: int = 12) -> dict[str, Any]:
    """An evaluation of the first training images of every class."""
    rows = torch.cat([torch.arange(images) + start for start in dataset.train.offsets[:-1].tolist()])
    chosen = dataset.normalise(dataset.train.images[rows])
    return evaluate_images(chosen, dataset.train.labels[rows], dataset, settings, lambda: None)


class Epoch:
    """What an epoch was called with, and the state of its optimizer before it."""

    def __init__(self, network: Network, sgd: torch.optim.SGD, images: Tensor, labels: Tensor, **how: Any) -> None:
        self.network, self.sgd, self.images, self.labels, self.how = network, sgd, images, labels, how
        self.groups = {key: value for key, value in sgd.param_groups[0].items() if key != "params"}
        self.momentum = len(sgd.state)
        self.weights = torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[Epoch]:
    """Every epoch, which is only recorded but for a step that leaves momentum behind."""
    seen: list[Epoch] = []

    def record(network: Network, sgd: torch.optim.SGD, images: Tensor, labels: Tensor, **how: Any) -> None:
        seen.append(Epoch(network, sgd, images, labels, **how))
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sgd.step()

    monkeypatch.setattr(protocol, "train_epoch", record)
    return seen


class TestSchedule:
    @pytest.mark.parametrize(
        ("given", "first", "second"), [(1000, 502, 499), (300, 152, 149), (7, 5, 3), (2, 3, 0), (1, 2, 0)]
    )
    def test_drops_after_half_and_two(
        self, epochs: list[Epoch], dataset: Dataset, given: int, first: int, second: int
    ) -> None:
        evaluated(dataset, replace(QUICK, epochs=given, repeats=1), 1)
        rates = [epoch.groups["lr"] for epoch in epochs]
        assert rates == [0.01] * first + [pytest.approx(0.001)] * second

    def test_the_drop_has_a_new_optimizer_without_momentum(self, epochs: list[Epoch], dataset: Dataset) -> None:
        evaluated(dataset, replace(QUICK, epochs=7, repeats=1), 1)
        assert [epoch.momentum > 0 for epoch in epochs] == [False] + [True] * 4 + [False] + [True] * 2
        assert len({id(epoch.sgd) for epoch in epochs}) == 2
        assert len({id(epoch.network) for epoch in epochs}) == 1

    def test_is_sgd_with_momentum_and_decay(self, epochs: list[Epoch], dataset: Dataset) -> None:
        evaluated(dataset, replace(QUICK, epochs=7, repeats=1), 1)
        for epoch in epochs:
            assert isinstance(epoch.sgd, torch.optim.SGD)
            assert (epoch.groups["momentum"], epoch.groups["weight_decay"]) == (0.9, 5e-4)
            assert not epoch.groups["nesterov"]
            assert epoch.groups["dampening"] == 0

    def test_the_whole_set_has_its_own_epochs(self, epochs: list[Epoch], dataset: Dataset) -> None:
        found = evaluate_whole(dataset, 9, replace(QUICK, repeats=1), lambda: None)
        assert [epoch.groups["lr"] for epoch in epochs].count(0.01) == 6
        assert len(epochs) == 10
        assert (found["epochs"], found["images"]) == (9, 36)
        assert torch.equal(epochs[0].images, dataset.train.images)

    def test_counts_its_steps(self, dataset: Dataset) -> None:
        many, ticks = toy(per_class=100), []
        evaluate_whole(many, 3, QUICK, lambda: ticks.append(1))
        assert len(ticks) == steps(QUICK, 300, 3) == 2 * 4 * 2


class TestTraining:
    @pytest.fixture
    def batches(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, tuple[str, ...]]]:
        seen: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []

        def record(draws: Tensor, strategy: tuple[str, ...], size: tuple[int, int]) -> Tensor:
            drawn.append((draws, strategy))
            return tabulate_batch(draws, strategy, size)

        def see(images: Tensor, table: Tensor) -> Tensor:
            assert torch.equal(table, tabulate_batch(*drawn[-1], images.shape[-2:]))
            seen.append((images[:, 0], *drawn[-1]))
            return transform(images, table)

        drawn: list[tuple[Tensor, tuple[str, ...]]] = []
        monkeypatch.setattr(training, "tabulate_batch", record)
        monkeypatch.setattr(training, "transform", see)
        return seen

    def test_sees_every_image_once_an_epoch_in_batches_of_256(self, batches: list[Any]) -> None:
        many = toy(per_class=200)
        evaluate_whole(many, 1, replace(QUICK, repeats=1), lambda: None)
        assert [len(images) for images, _, _ in batches] == [256, 256, 88] * 2
        expected = many.normalise(many.train.images).flatten(1).sort(0).values
        orders = [torch.cat([images for images, _, _ in batches[part : part + 3]]).flatten(1) for part in (0, 3)]
        for order in orders:
            assert torch.equal(order.sort(0).values, expected)
        assert not torch.equal(*orders), "shuffled anew"

    def test_augments_every_image_by_draws_of_its_own(self, batches: list[Any]) -> None:
        evaluate_whole(toy(per_class=100), 2, replace(QUICK, augmentation="crop_scale"), lambda: None)
        for images, draws, strategy in batches:
            assert strategy == ("crop", "scale")
            assert draws.shape == (len(images), DRAWS)
        everything = torch.cat([draws for _, draws, _ in batches])
        assert len(everything) == 2 * 3 * 300
        assert len(everything.unique(dim=0)) == len(everything)
        assert abs(everything.mean() - 0.5) < 0.02

    @pytest.mark.parametrize("repeat", [0, 1])
    def test_equals_a_plain_loop(self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, repeat: int) -> None:
        settings, trained = replace(QUICK, epochs=5, seed=4), []

        def keep(network: Network, *arguments: Any) -> Any:
            trained.append(network)
            return training.accuracy(network, *arguments)

        monkeypatch.setattr(protocol, "accuracy", keep)
        evaluated(dataset, settings)
        for got, expected in zip(trained[repeat].parameters(), plain(dataset, settings, repeat), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def plain(dataset: Dataset, settings: Protocol, repeat: int) -> list[nn.Parameter]:
    """The weights of a network, from the protocol's sentences; all images make one batch."""
    network = build_network(settings, dataset, keyed.generator(settings.seed, repeat, "evaluation network", CPU))
    shuffle = keyed.generator(settings.seed, repeat, "evaluation batches", CPU)
    images, labels = dataset.normalise(dataset.train.images), dataset.train.labels
    weights = list(network.parameters())
    for rate, count in ((0.01, 4), (0.001, 2)):
        held = [torch.zeros_like(weight) for weight in weights]
        for _ in range(count):
            rows = torch.randperm(len(images), generator=shuffle)
            draws = torch.rand(len(images), DRAWS, generator=shuffle)
            batch = augment_batch(images[rows], draws, parse_strategy(settings.augmentation))
            loss = F.cross_entropy(network(batch), labels[rows])
            sgd_step(weights, held, torch.autograd.grad(loss, weights), rate, 5e-4)
    return weights


class TestDraws:
    def test_equal_seeds_give_equal_evaluations(self, dataset: Dataset) -> None:
        torch.manual_seed(0)
        first, before = evaluated(dataset, QUICK), torch.get_rng_state()
        torch.manual_seed(1)
        assert evaluated(dataset, QUICK) == first
        torch.manual_seed(0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_repeats_and_seeds_have_networks_of_their_own(self, epochs: list[Epoch], dataset: Dataset) -> None:
        for seed in (0, 1):
            evaluated(dataset, replace(QUICK, repeats=3, epochs=1, seed=seed))
        starts = [epoch.weights for epoch in epochs[::2]]
        assert len(starts) == 6
        assert len({tuple(weights.tolist()) for weights in starts}) == 6
        shuffles = [torch.rand(3, generator=epoch.how["generator"]).tolist() for epoch in epochs[::2]]
        assert len({tuple(numbers) for numbers in shuffles}) == 6

    def test_random_images_are_drawn_anew_for_each_network(self, epochs: list[Epoch], dataset: Dataset) -> None:
        found = evaluate_random([4, 4, 4], dataset, replace(QUICK, repeats=5, epochs=1), lambda: None)
        drawn = [epoch.images for epoch in epochs[::2]]
        assert found["images"] == 12
        everything = dataset.train.images.flatten(1)
        rows = [(images.flatten(1)[:, None] == everything).all(2).nonzero()[:, 1] for images in drawn]
        for chosen in rows:
            assert len(chosen.unique()) == 12
            assert dataset.train.labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert len({tuple(chosen.tolist()) for chosen in rows}) == 5
        assert all(torch.equal(a.images, b.images) for a, b in zip(epochs[::2], epochs[1::2], strict=True))
        assert torch.equal(epochs[0].how["prepare"](drawn[0]), dataset.normalise(drawn[0]))

    def test_random_images_may_be_unequally_many(self, epochs: list[Epoch], dataset: Dataset) -> None:
        found = [
            evaluate_random(counts, dataset, replace(QUICK, repeats=1, epochs=1), lambda: None)
            for counts in ([1, 4, 2], [4, 4, 4])
        ]
        few, equal = epochs[0], epochs[2]
        assert found[0]["images"] == 7
        assert few.labels.tolist() == [0, 1, 1, 1, 1, 2, 2]
        assert torch.equal(few.images, equal.images[[0, 4, 5, 6, 7, 8, 9]])


class Guess(nn.Module):
    """Says what is written in the first pixel of an image."""

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(images[:, 0, 0, 0].round().long(), 4).float()


class TestAccuracy:
    @pytest.fixture
    def marked(self) -> Dataset:
        """Test images with guesses written on them: class 0 has 1 of 2 right, 1 has 3 of 6, 2 none, 3 two of two."""
        guesses = torch.tensor([0, 3, 1, 1, 1, 0, 0, 2, 3, 3])
        labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 3, 3])
        images = guesses.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
        test = Split.from_tensors(images, labels, 4)
        return replace(toy(4), test=test, mean=(0.0,), std=(1 / 255,))

    def test_is_in_percent_and_by_class(self, marked: Dataset) -> None:
        total, by_class = training.accuracy(Guess(), marked)  # type: ignore[arg-type]
        assert total == pytest.approx(60)
        assert by_class == [50, 50, None, 100]

    def test_is_over_all_networks(self, marked: Dataset, monkeypatch: pytest.MonkeyPatch, epochs: list[Epoch]) -> None:
        answers = iter(
            [(60.0, [50.0, 50.0, None, 100.0]), (70.0, [0.0, 80.0, None, 100.0]), (20.0, [25.0, 5.0, None, 40.0])]
        )
        monkeypatch.setattr(protocol, "accuracy", lambda *_: next(answers))
        found = evaluated(marked, replace(QUICK, repeats=3))
        assert found["runs"] == [60, 70, 20]
        assert found["mean"] == 50
        assert found["std"] == pytest.approx((1400 / 3) ** 0.5), "divided by 3, not by 2"
        assert found["per_class"] == [25, 45, None, 80]

    def test_classes_average_to_the_total(self, marked: Dataset) -> None:
        found = evaluated(marked, replace(QUICK, repeats=3, epochs=1))
        counts = marked.test.counts
        by_class = [value or 0 for value in found["per_class"]]
        assert found["per_class"][2] is None
        weighted = sum(value * count for value, count in zip(by_class, counts, strict=True)) / sum(counts)
        assert weighted == pytest.approx(found["mean"])

    def test_counts_every_test_image(self) -> None:
        many = toy(per_class=4, test=400)  # 1,200 test images: more than two batches
        network = build_network(QUICK, many)
        total, by_class = training.accuracy(network, many)
        right = network(many.normalise(many.test.images)).argmax(1) == many.test.labels
        assert total == pytest.approx(100 * right.double().mean().item())
        assert by_class == [pytest.approx(100 * part.double().mean().item()) for part in right.split(400)]


class TestTable:
    def rows(self, dataset: Dataset, per_class: int | list[int], whole_epochs: int) -> dict[str, Any]:
        labels = torch.arange(3).repeat_interleave(torch.tensor(per_class))
        images = torch.randn(len(labels), 1, 8, 8)
        with Stop() as stop:
            return evaluate_all(images, labels, dataset, QUICK, whole_epochs, Console(quiet=True), stop)

    def test_has_the_rows_that_apply(self, dataset: Dataset) -> None:
        assert list(self.rows(dataset, 12, 1)) == ["random", "distilled", "whole"]
        assert list(self.rows(dataset, 12, 0)) == ["random", "distilled"]
        assert list(self.rows(dataset, 13, 0)) == ["distilled"], "a class has 12 images to draw from"
        assert list(self.rows(dataset, [1, 13, 1], 0)) == ["distilled"]
        assert [row["images"] for row in self.rows(dataset, [1, 12, 3], 0).values()] == [16, 16]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_npz(folder / "data", toy())
    words = ["distill", "--data", "./data", "--out", "run", *options({**SMALL, "ipc": 2, "iterations": 1})]
    assert ddfast(*words, cwd=folder, setup=NO_PICTURES).code == 0
    return folder / "run"


class TestCommand:
    def test_takes_other_networks(self, run: Path) -> None:
        before = contents(run)
        words = ["--networks", "resnet18, convnet,alexnet,vgg11,convnet", "--repeats", "2", "--epochs", "1"]
        outcome = ddfast("evaluate", "run", *words, cwd=run.parent)
        assert (outcome.code, outcome.err) == (0, "")
        names = ["resnet18", "convnet", "alexnet", "vgg11"]
        lines = outcome.out.splitlines()
        assert [line.split()[1] for line in lines if line.startswith("network:")] == names
        after = contents(run)
        assert set(after) - set(before) == {f"evaluation-{name}.json" for name in names}
        assert all(after[name] == before[name] for name in before)
        assert lines[-5].split() == ["network", "random", "real", "images", "distilled", "images"]
        for name, line in zip(names, lines[-4:], strict=True):
            table = json.loads((run / f"evaluation-{name}.json").read_text())
            assert {(row["network"], row["epochs"], len(row["runs"])) for row in table.values()} == {(name, 1, 2)}
            random, distilled = (f"{table[row]['mean']:.1f} ± {table[row]['std']:.1f} %" for row in table)
            assert line.split() == [name, *random.split(), *distilled.split()]

    def test_a_run_s_architecture_is_for_its_own_network(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(run.parent)
        own = find_subject(run, {}, None, Console(quiet=True))
        variant = own.config.replace(norm="none", activation="sigmoid", pooling="max")
        assert replace(own, config=variant).config_of("convnet") == variant
        assert replace(own, config=variant).config_of("vgg11") == own.config_of("vgg11")
        assert own.config_of("") == own.config_of("convnet") == Config.load(run / "config.toml")
        assert (own.config.width, own.config.depth) == (8, 2)
        for name in ("alexnet", "vgg11", "resnet18"):
            other = own.config_of(name)
            assert (other.network, other.width, other.depth, other.norm) == (name, None, None, None)
        asked = find_subject(run, {"width": 16, "norm": "group", "seed": 3}, None, Console(quiet=True))
        for name in ("convnet", "alexnet"):
            other = asked.config_of(name)
            assert (other.network, other.width, other.norm, other.seed) == (name, 16, "group", 3)

    def test_repeats_the_run_s_own_evaluation(self, run: Path) -> None:
        before = contents(run)
        assert ddfast("evaluate", "run", cwd=run.parent).code == 0
        assert contents(run) == before
        assert ddfast("evaluate", "run", "--networks", "convnet", cwd=run.parent).code == 0
        assert contents(run)["evaluation-convnet.json"] == before["evaluation.json"]

    def test_keeps_the_best_of_the_curve(self, run: Path) -> None:
        words = ["distill", "--data", "./data", "--out", "curve", *options({**SMALL, "ipc": 2, "iterations": 2})]
        assert ddfast(*words, "--eval-every", "1", cwd=run.parent, setup=NO_PICTURES).code == 0
        best = json.loads((run.parent / "curve" / "evaluation.json").read_text())["best"]
        assert ddfast("evaluate", "curve", "--repeats", "3", cwd=run.parent).code == 0
        after = json.loads((run.parent / "curve" / "evaluation.json").read_text())
        assert (after["best"], len(after["distilled"]["runs"])) == (best, 3)

    def test_refuses_an_unknown_network_before_it_evaluates_a_known_one(self, run: Path) -> None:
        before = contents(run)
        outcome = ddfast("evaluate", "run", "--networks", "convnet,alexnett", "--epochs", "7", cwd=run.parent)
        assert "there is no network 'alexnett'" in outcome.mistake(2)
        assert contents(run) == before
