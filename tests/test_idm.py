"""IDM's loop against a plain one, in float64: a step of torch.optim.SGD for each class in turn over one tensor, an
optimizer for each network, and the definitions of the losses."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine import ALL, make_distiller, make_pool, make_state, record_keys, toy
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from ddfast import keyed, reference
from ddfast.augment import DRAWS, augment, parse_strategy
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.loop import BLOCK, TERMS, Distiller
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Pool
from ddfast.networks import Network, build, draw_weights

CPU = torch.device("cpu")
ONE = torch.zeros(1, dtype=torch.int64)
BATCH = 32  # of the queue: fewer than all images
SMALL = {"ipc": 2, "batch_real": 8, "width": 8, "depth": 2, "pool": "given"}
KEYS = {**SMALL, "method": "idm", "image_lr": 0.1, "image_momentum": 0.5, "queue_every": 5, "queue_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "IPC 1": {"ipc": 1, "covariance_weight": 0.0, "cross_entropy_weight": 0.1},
    "IPC 1, partition": {"ipc": 1, "covariance_weight": 0.03, "cross_entropy_weight": 0.1, "partition": 2},
    "IPC 10": {"ipc": 10, "covariance_weight": 0.03, "cross_entropy_weight": 0.05},
    "IPC 10, partition": {"ipc": 10, "covariance_weight": 0.03, "cross_entropy_weight": 0.05, "partition": 2},
    "all": {**ALL, "cross_entropy_weight": 0.1, "partition": 2},
    "all, rows, no cross-entropy": {**ALL, "covariance_weight": 0.1, "local": "rows", "partition": 2},
}


@dataclass
class Student:
    network: Network
    sgd: torch.optim.SGD
    seen: int = 0
    right: int = 0


class Plain:
    """The same run as its sentences say it."""

    def __init__(self, config: Config, dataset: Dataset, pool: Pool, images: Tensor) -> None:
        self.config, self.dataset, self.pool = config, dataset, pool
        self.images = images.clone().requires_grad_()
        self.sgd = torch.optim.SGD([self.images], lr=config.image_lr, momentum=config.image_momentum)
        self.real = dataset.normalise(dataset.train.images)
        self.queue = [self.student(number) for number in range(3)]

    def student(self, number: int) -> Student:
        keys = make_distiller(self.config, self.dataset).network.config
        network = build(**keys, fused=False, device="cpu", generator=torch.Generator()).double()
        draw_weights(network, keyed.generator(self.config.seed, number, "queue network", CPU))
        return Student(network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4))

    def iterate(self, number: int) -> dict[str, float]:
        """The unweighted terms."""
        config = self.config
        if number % config.queue_every == 0:
            self.queue.append(self.student(3 + number // config.queue_every))
        draw = keyed.uniform(config.seed, number, ONE, "matching network", 1)
        student = self.queue[int(draw * len(self.queue))]
        terms = dict.fromkeys(TERMS, 0.0)
        for k in range(self.dataset.num_classes):
            values = dict(zip(TERMS, self.of_class(k, number, student), strict=True))
            weights = {**{key: getattr(config, key) for key in ALL}, "entropy": config.cross_entropy_weight}
            self.sgd.zero_grad(set_to_none=False)
            sum(weight * value for weight, value in zip(weights.values(), values.values(), strict=True)).backward()
            self.sgd.step()
            terms = {name: terms[name] + float(torch.as_tensor(value).detach()) for name, value in values.items()}
        scores = keyed.bits(config.seed, number, ONE, "taught networks", 100)[0, : len(self.queue)]
        for place, index in enumerate(scores.argsort()[:2].tolist()):
            for step in range(config.queue_steps):
                turn = torch.tensor([place * config.queue_steps + step])
                self.teach(self.queue[index], keyed.bits(config.seed, number, turn, "queue batches", len(self.real))[0])
        return terms

    def teach(self, student: Student, scores: Tensor) -> None:
        rows = scores.topk(BATCH).indices
        logits, labels = student.network(self.real[rows]), self.dataset.train.labels[rows]
        student.sgd.zero_grad()
        F.cross_entropy(logits, labels).backward()
        student.sgd.step()
        student.seen += len(rows)
        student.right += int((logits.argmax(1) == labels).sum())

    def of_class(self, k: int, number: int, student: Student) -> tuple[Any, ...]:
        config, split, network = self.config, self.dataset.train, student.network
        label = torch.tensor([k])
        draws = keyed.uniform(config.seed, number, label, "augmentation", DRAWS)
        scores = keyed.bits(config.seed, number, label, "real images", max(split.counts))
        real = self.real[split.labels == k][scores[0, : split.counts[k]].argsort()[: config.batch_real]]
        own = self.images[k * config.ipc : (k + 1) * config.ipc]
        if config.partition == 2:
            (top_left, bottom_left), (top_right, bottom_right) = (half.chunk(2, -2) for half in own.chunk(2, -1))
            own = torch.cat([top_left, bottom_left, top_right, bottom_right])
            own = F.interpolate(own, scale_factor=2, mode="bilinear", align_corners=False)
        real, augmented = (augment(it[None], draws, parse_strategy(config.augmentation))[0] for it in (real, own))
        maps = network.embed(real).detach(), network.embed(augmented)
        member = self.pool.networks[self.pool.choice(config.seed, number)]
        count = len(own) * self.dataset.num_classes
        accuracy = 100 * student.right / student.seen if student.seen else 0.0
        return (
            reference.distribution_matching(*maps),
            reference.covariance_matching(*maps, config.local),
            reference.class_centralization(member.features(augmented)) if config.centralization_weight else 0.0,
            reference.conditional_mutual_information(member.features(own)) / count if config.cmi_weight else 0.0,
            accuracy * F.cross_entropy(network(augmented), label.expand(len(own))),
        )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=4, per_class=12, channels=3)


@pytest.fixture(scope="module")
def pool(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = make_pool(tmp_path_factory.mktemp("pool"), dataset)
    for network in (pool.member, *pool.networks):
        network.double()
    return pool


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in float64, of which all else follows, and small batches."""
    narrow = Dataset.normalise
    monkeypatch.setattr("ddfast.distill.queue.BATCH", BATCH)
    monkeypatch.setattr(Dataset, "normalise", lambda self, images: narrow(self, images).double())


def begin(config: Config, dataset: Dataset, pool: Pool, plan: Plan | None = None) -> tuple[Distiller, State]:
    distiller, state = make_distiller(config, dataset, pool, plan), make_state(config, dataset)
    for network in (distiller.network, distiller.teacher.network):
        network.double()
    state.images, state.momentum = state.images.double(), torch.zeros_like(state.images, dtype=torch.float64)
    return distiller, state


@pytest.mark.parametrize("case", CASES)
def test_twenty_sweeps_are_those_of_a_plain_loop(case: str, dataset: Dataset, pool: Pool) -> None:
    config = Config(**{**KEYS, **CASES[case]})
    distiller, state = begin(config, dataset, pool if config.needs_pool else None)
    plain = Plain(config, dataset, pool, state.images)
    begun = state.images.clone()
    entropies = []
    for iteration in range(20):
        expected = plain.iterate(iteration)
        terms = distiller.report(distiller.iterate(state))
        for name in distiller.weights:
            assert terms[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-12), name  # reported in float32
        entropies.append(expected["cross_entropy"])
    moved = (state.images - begun).norm()
    assert moved > 0.1
    assert (plain.images.detach() - state.images).norm() <= 1e-10 * moved
    torch.testing.assert_close(state.momentum, plain.sgd.state[plain.images]["momentum_buffer"], rtol=0, atol=1e-10)
    learned = torch.stack([parameters_to_vector(student.network.parameters()) for student in plain.queue])
    torch.testing.assert_close(state.queue.weights, learned.detach(), rtol=0, atol=1e-10)
    assert min(entropies) == 0 < max(entropies), "some networks had learned, and some had not"
    assert len(state.queue) == len(plain.queue) == 3 + 4


@pytest.mark.parametrize("plan", [Plan(1, 8, 2, 3), Plan(3, 5, 99, 99), Plan(1, 3, 1, 7)])
def test_chunks_do_not_matter(plan: Plan, dataset: Dataset, pool: Pool) -> None:
    config = Config(**{**KEYS, **CASES["all"], "ipc": 3})
    ends = []
    for cut in (None, plan):
        distiller, state = begin(config, dataset, pool, cut)
        for _ in range(3):
            distiller.iterate(state)
        ends.append(state.images)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_cross_entropy_alone_is_a_loss_beside_those_of_a_pool(dataset: Dataset, pool: Pool) -> None:
    weights = {"mean_weight": 0.0, "covariance_weight": 0.0, "centralization_weight": 1e-9}
    config = Config(**{**KEYS, **weights, "cross_entropy_weight": 0.1})
    distiller, state = begin(config, dataset, pool)
    entropies = [distiller.report(distiller.iterate(state))["cross_entropy"] for _ in range(4)]
    assert max(entropies) > 0
    assert (state.momentum.flatten(1).norm(dim=1) > 1e-3).all()


def test_every_number_has_one_use(dataset: Dataset, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn for one purpose says nothing about another."""
    config = Config(**{**KEYS, **CASES["all"]})
    distiller, state = begin(config, dataset, pool)
    used = record_keys(monkeypatch)
    for _ in range(6):
        distiller.iterate(state)
    networks, member, augmentation, images, batches = 3 + 2, 1 + 1 + 1, 4, 4, 2 * 2
    assert len(used) == len(set(used)) == networks + BLOCK * augmentation + 6 * (member + images + batches)
