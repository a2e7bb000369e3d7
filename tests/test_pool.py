"""Pools of pre-trained networks: made, gone on with, added to, and refused where they do not fit."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from engine import ALL, POOL, SMALL, contents, make_pool, run_here, save_npz, sgd_step, toy
from torch import Tensor

from ddfast import keyed
from ddfast.augment import DRAWS, augment_batch, parse_strategy
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.pool import Pool
from ddfast.distill.pretrain import PoolConfig, pretrain, trained
from ddfast.errors import RunFailed, UserError
from ddfast.networks import build
from ddfast.training import accuracy, build_network, train_epoch

SETTINGS = PoolConfig(epochs=3, network="convnet", width=4, depth=2)
CPU = torch.device("cpu")
FIRST = "network-0000.safetensors"


class Stop(Exception):
    """What a tick raises to end a training."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=3, per_class=100)  # 300 images: a batch of 256 and one of 44


def train(
    folder: Path, dataset: Dataset, count: int = 1, settings: PoolConfig = SETTINGS, steps: int | None = None
) -> list[tuple[int, float]]:
    """Pre-trains for so many steps; the networks that were finished, with their accuracies."""
    done: list[tuple[int, float]] = []
    left = [10**9 if steps is None else steps]

    def tick() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Stop

    try:
        pretrain(folder, dataset, count, settings, tick, lambda *result: done.append(result))
    except Stop:
        assert steps is not None
    return done


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of two networks that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, dataset, 2)
    return folder


def by_hand(dataset: Dataset, settings: PoolConfig, number: int) -> list[Tensor]:
    """The weights of a network, from formulas: SGD with momentum 0.9 and weight decay, rate 0.01, batches of 256.

    In bf16 the gradients come from a second network, which is given the weights anew before every step.
    """
    network = build_network(settings, dataset, keyed.generator(settings.seed, number, "pool network", CPU))
    weights = list(network.parameters())
    held = [torch.zeros_like(weight) for weight in weights]
    half = settings.precision == "bf16"
    worker = copy.deepcopy(network).to(torch.bfloat16) if half else network
    strategy = parse_strategy(settings.augmentation)
    images, labels = dataset.normalise(dataset.train.images), dataset.train.labels
    for epoch in range(settings.epochs):
        shuffle = keyed.generator(settings.seed, epoch, f"pool network {number} batches", CPU)
        for rows in torch.randperm(300, generator=shuffle).split(256):
            batch = augment_batch(images[rows], torch.rand(len(rows), DRAWS, generator=shuffle), strategy)
            worker.load_state_dict(network.state_dict())
            logits = worker(batch.to(worker.head.weight.dtype)).float()
            gradients = torch.autograd.grad(F.cross_entropy(logits, labels[rows]), list(worker.parameters()))
            sgd_step(weights, held, [it.float() for it in gradients], 0.01, settings.weight_decay)
    return [weight.detach() for weight in weights]


class TestPretraining:
    def test_is_sgd_as_published(self, whole: Path, dataset: Dataset) -> None:
        for number, network in enumerate(Pool.load(whole, dataset).networks):
            for got, expected in zip(network.parameters(), by_hand(dataset, SETTINGS, number), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)

    def test_takes_its_settings(self, dataset: Dataset, tmp_path: Path) -> None:
        settings = replace(SETTINGS, epochs=2, width=6, weight_decay=0.1, seed=5)
        train(tmp_path, dataset, 1, settings)
        network = Pool.load(tmp_path, dataset).networks[0]
        for got, expected in zip(network.parameters(), by_hand(dataset, settings, 0), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)

    def test_augments_where_that_is_asked_for(self, dataset: Dataset, tmp_path: Path) -> None:
        settings = replace(SETTINGS, augmentation="crop_cutout")
        train(tmp_path, dataset, 1, settings)
        network = Pool.load(tmp_path, dataset).networks[0]
        for got, expected in zip(network.parameters(), by_hand(dataset, settings, 0), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)

    def test_in_bf16_is_steps_of_float32_weights(self, dataset: Dataset, tmp_path: Path) -> None:
        settings = replace(SETTINGS, precision="bf16")
        train(tmp_path, dataset, 1, settings)
        got, halves, wholes = (
            torch.cat([weight.flatten() for weight in weights])
            for weights in (
                Pool.load(tmp_path, dataset).networks[0].parameters(),
                by_hand(dataset, settings, 0),
                by_hand(dataset, SETTINGS, 0),
            )
        )
        assert got.dtype == torch.float32
        assert 0 < (got - wholes).norm() < 0.02 * wholes.norm()
        assert (got - halves).norm() < 0.05 * (got - wholes).norm()

    @pytest.mark.parametrize("name", ["convnet", "resnet18"])
    def test_in_bf16_has_the_gradients_of_a_network_in_bf16(self, name: str) -> None:
        """Of every weight, through all operators of a network of the width that convolves at Winograd's points."""
        keys = {"channels": 3, "num_classes": 8, "size": (16, 16), "width": 64, "device": "cpu"}
        images, labels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8)
        network, worker = (build(name, **keys, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        sgd = torch.optim.SGD(network.parameters(), lr=0.0)
        batches = {"prepare": lambda x: x, "strategy": (), "generator": torch.Generator(), "tick": lambda: None}
        train_epoch(network, sgd, images, labels, **batches, dtype=torch.bfloat16)
        order = torch.randperm(8, generator=torch.Generator())
        logits = worker.to(torch.bfloat16)(images[order].to(torch.bfloat16)).float()
        F.cross_entropy(logits, labels[order]).backward()
        for got, expected in zip(network.parameters(), worker.parameters(), strict=True):
            assert got.grad.dtype == torch.float32
            assert torch.equal(got.grad, expected.grad.float())

    def test_records_the_accuracy_of_what_it_wrote(self, dataset: Dataset, tmp_path: Path) -> None:
        done = train(tmp_path, dataset, 2)
        assert [number for number, _ in done] == [0, 1]
        for (number, said), network in zip(done, Pool.load(tmp_path, dataset).networks, strict=True):
            with safetensors.safe_open(tmp_path / f"network-{number:04d}.safetensors", "pt") as file:
                about = file.metadata()
            assert float(about["accuracy"]) == said == accuracy(network, dataset)[0]
            assert about["epochs"] == "3"
            assert about["precision"] == "float32"
            assert json.loads(about["config"]) == network.config

    def test_lists_networks_without_their_weights(self, dataset: Dataset, tmp_path: Path) -> None:
        done = train(tmp_path, dataset, 2, steps=12)  # the last step ends it before the second network is written
        done += train(tmp_path, dataset, 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ddfast.networks.draw_weights", None)
            rows = trained(tmp_path)
        assert [(row["network"], row["accuracy"]) for row in rows] == [
            (f"network-{number:04d}", reached) for number, reached in done
        ]
        assert all(0 < row["seconds"] < 60 for row in rows)

    def test_counts_the_seconds_before_an_interruption(self, dataset: Dataset, tmp_path: Path) -> None:
        train(tmp_path, dataset, 1, steps=5)
        path = tmp_path / "network-0000.partial"
        with safetensors.safe_open(path, "pt") as file:
            about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        safetensors.torch.save_file(tensors, path, {**about, "seconds": str(float(about["seconds"]) + 1000)})
        train(tmp_path, dataset, 1)
        assert 1000 < trained(tmp_path)[0]["seconds"] < 1060

    def test_networks_learn_and_differ(self, dataset: Dataset, tmp_path: Path) -> None:
        reached = [accuracy for _, accuracy in train(tmp_path, dataset, 2, replace(SETTINGS, epochs=15))]
        assert min(reached) > 60, "chance is 33"
        first, second = (
            torch.cat([p.flatten() for p in network.parameters()]) for network in Pool.load(tmp_path, dataset).networks
        )
        assert (first - second).norm() > 0.5 * first.norm()

    def test_leaves_the_global_random_state_alone(self, whole: Path, dataset: Dataset, tmp_path: Path) -> None:
        torch.manual_seed(99)
        before = torch.get_rng_state()
        train(tmp_path, dataset, 2)
        assert torch.equal(torch.get_rng_state(), before)
        assert contents(tmp_path) == contents(whole)

    def test_networks_of_a_pool_are_frozen(self, whole: Path, dataset: Dataset) -> None:
        assert not any(p.requires_grad for network in Pool.load(whole, dataset).networks for p in network.parameters())


class TestGoingOn:
    """Two networks of 3 epochs of 2 steps: 12 steps."""

    @pytest.mark.parametrize("steps", range(1, 13))
    def test_after_any_step_equals_the_uninterrupted_pool(
        self, whole: Path, dataset: Dataset, tmp_path: Path, steps: int
    ) -> None:
        train(tmp_path, dataset, 2, steps=steps)
        assert contents(tmp_path) != contents(whole)
        train(tmp_path, dataset, 2)
        assert contents(tmp_path) == contents(whole)

    @pytest.mark.parametrize("keys", [{"precision": "bf16"}, {"augmentation": "color_crop_flip_rotate"}])
    def test_in_any_precision_and_augmentation(self, dataset: Dataset, tmp_path: Path, keys: dict[str, str]) -> None:
        settings = replace(SETTINGS, **keys)
        train(tmp_path / "whole", dataset, 1, settings)
        for steps in (2, 3, 5):
            train(tmp_path / str(steps), dataset, 1, settings, steps)
            train(tmp_path / str(steps), dataset, 1, settings)
            assert contents(tmp_path / str(steps)) == contents(tmp_path / "whole")

    def test_of_a_pool_that_does_not_say_what_is_newer(self, whole: Path, dataset: Dataset, tmp_path: Path) -> None:
        for path in whole.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        settings = json.loads((tmp_path / "pool.json").read_text())
        newer = {"precision": "float32", "augmentation": "none", "holdout": 0.0}
        (tmp_path / "pool.json").write_text(json.dumps({key: settings[key] for key in settings.keys() - newer.keys()}))
        assert {key: settings[key] for key in newer} == newer
        assert train(tmp_path, dataset, 2) == []
        assert len(Pool.load(tmp_path, dataset).networks) == 2
        with pytest.raises(UserError, match='holds a pool of another precision: "float32", not "bf16"'):
            train(tmp_path, dataset, 2, replace(SETTINGS, precision="bf16"))

    def test_repeats_no_epoch_that_was_done(self, dataset: Dataset, tmp_path: Path) -> None:
        train(tmp_path, dataset, 1, steps=5)
        steps = []
        pretrain(tmp_path, dataset, 1, SETTINGS, lambda: steps.append(1), lambda *_: None)
        assert len(steps) == 2

    def test_a_network_that_is_not_finite_is_none(self, dataset: Dataset, tmp_path: Path) -> None:
        with pytest.raises(RunFailed, match=r"network 0 of .* is not finite after epoch [123]$"):
            train(tmp_path, dataset, 1, replace(SETTINGS, weight_decay=1e30))
        assert not (tmp_path / FIRST).exists()

    def test_of_a_finished_pool_trains_nothing(self, whole: Path, dataset: Dataset) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
        assert train(whole, dataset, 2) == []
        assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before

    def test_the_count_can_grow(self, whole: Path, dataset: Dataset, tmp_path: Path) -> None:
        assert [number for number, _ in train(tmp_path, dataset, 1)] == [0]
        assert [number for number, _ in train(tmp_path, dataset, 2)] == [1]
        assert contents(tmp_path) == contents(whole)

    def test_of_a_pool_from_before_activation_and_pooling(self, whole: Path, dataset: Dataset, tmp_path: Path) -> None:
        train(tmp_path, dataset, 1)
        for path in tmp_path.iterdir():
            forget(path, "activation", "pooling")
        assert json.loads((tmp_path / "pool.json").read_text())["norm"] == "instance"
        assert len(Pool.load(tmp_path, dataset).networks) == 1
        assert [number for number, _ in train(tmp_path, dataset, 2, replace(SETTINGS, norm="instance"))] == [1]
        for old, new in zip(*(Pool.load(folder, dataset).networks for folder in (tmp_path, whole)), strict=True):
            assert all(map(torch.equal, old.parameters(), new.parameters()))


def forget(path: Path, *keys: str) -> None:
    """Writes pool.json, or a network, again without what it says about these keys."""
    if path.name == "pool.json":
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in settings.items() if key not in keys}))
        return
    with safetensors.safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = {key: value for key, value in json.loads(about["config"]).items() if key not in keys}
    assert len(config) < len(json.loads(about["config"]))
    safetensors.torch.save_file(tensors, path, {**about, "config": json.dumps(config)})


OTHERS = {
    "epochs": 4,
    "network": "resnet18",
    "width": 5,
    "depth": 1,
    "norm": "none",
    "weight_decay": 1e-3,
    "seed": 1,
    "precision": "bf16",
    "augmentation": "crop",
    "activation": "sigmoid",
    "pooling": "max",
}


class TestRefusals:
    @pytest.mark.parametrize("key", OTHERS)
    def test_other_settings_by_name(self, whole: Path, dataset: Dataset, key: str) -> None:
        depth = {"depth": None} if key == "network" else {}
        with pytest.raises(UserError, match=f"holds a pool of another {key}: .*, not "):
            train(whole, dataset, 3, replace(SETTINGS, **depth, **{key: OTHERS[key]}))
        assert asdict(SETTINGS).keys() == OTHERS.keys()
        assert len(list(whole.iterdir())) == 3

    @pytest.mark.parametrize(
        ("key", "changed"),
        [
            ("classes", lambda dataset: replace(dataset, classes=("a", "b", "c"))),
            ("mean", lambda dataset: replace(dataset, mean=(0.5,))),
            ("std", lambda dataset: replace(dataset, std=(0.5,))),
            ("holdout", lambda dataset: dataset.holdout(0.25)),
        ],
    )
    def test_other_data_by_name(
        self, whole: Path, dataset: Dataset, key: str, changed: Callable[[Dataset], Dataset]
    ) -> None:
        with pytest.raises(UserError, match=f"is a pool for other data: its {key} is "):
            Pool.load(whole, changed(dataset))
        with pytest.raises(UserError, match=f"holds a pool of another {key}"):
            train(whole, changed(dataset), 2)

    def test_no_holdout_but_its_own_and_none(self, dataset: Dataset, tmp_path: Path) -> None:
        train(tmp_path, dataset.holdout(0.25), 1)
        assert len(Pool.load(tmp_path, dataset.holdout(0.25)).networks) == 1
        assert len(Pool.load(tmp_path, dataset).networks) == 1  # they have not seen the test images either
        with pytest.raises(UserError, match=r"its holdout is 0\.25, that of the run 0\.5$"):
            Pool.load(tmp_path, dataset.holdout(0.5))

    def test_images_of_another_size(self, whole: Path, dataset: Dataset, tmp_path: Path) -> None:
        larger = toy(size=16)
        other = replace(dataset, train=larger.train, test=larger.test)
        with pytest.raises(UserError, match=r"its size is \[8, 8\], that of the run \[16, 16\]"):
            Pool.load(whole, other)
        with pytest.raises(UserError, match=r"holds a pool of another size: \[8, 8\], not \[16, 16\]"):
            train(whole, other, 3)
        for path in whole.glob("*.*"):
            shutil.copy(path, tmp_path)
        forget(tmp_path / "pool.json", "size", "channels")  # as pools were before
        assert len(Pool.load(tmp_path, dataset).networks) == 2
        with pytest.raises(UserError, match=r"network-0000.* is for images of \[8, 8\], those of the run are"):
            Pool.load(tmp_path, other)

    @pytest.mark.parametrize("content", ["cut", b"", b"not a network", "foreign", "other shapes"])
    def test_a_broken_or_foreign_network_by_its_file(
        self, whole: Path, dataset: Dataset, tmp_path: Path, content: Any
    ) -> None:
        for path in whole.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        path = tmp_path / FIRST
        other = {"head.weight": torch.zeros(3, 4)}
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata()
        made = {
            "cut": path.read_bytes()[:-9],
            "foreign": safetensors.torch.save(other),
            "other shapes": safetensors.torch.save(other, about),
        }
        path.write_bytes(made.get(content, content))
        with pytest.raises(UserError, match=r"network-0000\.safetensors is not a network of ddfast"):
            Pool.load(tmp_path, dataset)

    @pytest.mark.parametrize("content", ["", "{", "[]", "[1, 2]", "3"])
    def test_a_broken_description(self, dataset: Dataset, tmp_path: Path, content: str) -> None:
        (tmp_path / "pool.json").write_text(content)
        for use in (lambda: Pool.load(tmp_path, dataset), lambda: train(tmp_path, dataset)):
            with pytest.raises(UserError, match=r"pool\.json is not the description of a pool: "):
                use()

    def test_a_broken_partial_network(self, dataset: Dataset, tmp_path: Path) -> None:
        train(tmp_path, dataset, 1, steps=3)
        (tmp_path / "network-0000.partial").write_bytes(b"half")
        with pytest.raises(UserError, match=r"network-0000\.partial is not an unfinished network of ddfast"):
            train(tmp_path, dataset, 1)

    def test_no_pool_at_all(self, dataset: Dataset, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(UserError, match=r"is not a pool: it must hold pool\.json and network-\*"):
                Pool.load(folder, dataset)

    def test_no_finished_network_yet(self, dataset: Dataset, tmp_path: Path) -> None:
        train(tmp_path, dataset, 1, steps=3)
        with pytest.raises(UserError, match=r"holds no finished network yet; ddfast pretrain --out .* continues it"):
            Pool.load(tmp_path, dataset)

    @pytest.mark.parametrize(
        "keys",
        [
            {"network": "vgg"},
            {"network": "alexnet"},
            {"norm": "batch"},
            {"depth": 9},
            {"precision": "half"},
            {"precision": "tf32"},
            {"augmentation": "zoom"},
        ],
    )
    def test_what_cannot_be_built_leaves_nothing(self, dataset: Dataset, tmp_path: Path, keys: dict[str, Any]) -> None:
        with pytest.raises(UserError):
            train(tmp_path / "pool", dataset, 1, replace(SETTINGS, **keys))
        assert not (tmp_path / "pool").exists()


def test_a_pool_outside_the_run_does_the_same_as_one_inside(tmp_path: Path) -> None:
    dataset = toy()
    keys = {**SMALL, **ALL, "data": str(save_npz(tmp_path / "data", dataset)), "ipc": 2, "batch_real": 8}
    config = Config(**keys, **POOL, iterations=4, eval_every=0, seed=3)
    make_pool(tmp_path / "pool", dataset, 2, epochs=2, seed=3)
    run_here(config.replace(pool=str(tmp_path / "pool")), tmp_path / "outside")
    run_here(config, tmp_path / "inside")
    outside, inside = contents(tmp_path / "outside"), contents(tmp_path / "inside")
    for name in ("checkpoint.safetensors", "synthetic.safetensors", "metrics.jsonl", "images.png"):
        assert outside[name] == inside[name]
    assert contents(tmp_path / "inside" / "pool") == contents(tmp_path / "pool")
