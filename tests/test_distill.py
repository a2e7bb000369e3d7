"""The loop against a plain one, written from the papers: classes in turn, definitions, autograd, torch.optim.SGD."""

from typing import Any

import pytest
import torch
from engine import ALL, make_distiller, make_pool, make_state, toy
from torch import Tensor

from ddfast import keyed, reference
from ddfast.augment import DRAWS, augment, parse_strategy
from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.loop import TERMS, Distiller
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Pool
from ddfast.networks import draw_weights

CPU = torch.device("cpu")
LOSSES = list(TERMS)[: len(ALL)]  # all but the cross-entropy, which is IDM's
ZERO = dict.fromkeys(ALL, 0.0)
KEYS = {"ipc": 2, "batch_real": 8, "width": 8, "depth": 2, "pool": "given", "image_lr": 0.7, "image_momentum": 0.6}


def config(**keys: Any) -> Config:
    return Config(**{**KEYS, **keys})


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy(classes=4, per_class=12, channels=3)


@pytest.fixture(scope="module")
def pool(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), dataset)


class Plain:
    """The same run, a class and a loss at a time, one backward over the sum of all, and PyTorch's SGD."""

    def __init__(self, config: Config, dataset: Dataset, pool: Pool, images: Tensor) -> None:
        self.config, self.dataset, self.pool = config, dataset, pool
        self.images = images.clone().requires_grad_()
        self.sgd = torch.optim.SGD([self.images], lr=config.image_lr, momentum=config.image_momentum)
        self.network = make_distiller(config, dataset).network

    def iterate(self, number: int) -> dict[str, Tensor]:
        """The unweighted terms; the images and their gradient are left behind."""
        draw_weights(self.network, keyed.generator(self.config.seed, number, "matching network", CPU))
        terms: dict[str, Any] = dict.fromkeys(LOSSES, 0.0)
        for k in range(self.dataset.num_classes):
            for name, value in zip(LOSSES, self.of_class(k, number), strict=True):
                terms[name] = terms[name] + value
        weights = [getattr(self.config, key) for key in ALL]
        self.sgd.zero_grad()
        sum(weight * term for weight, term in zip(weights, terms.values(), strict=True)).backward()
        self.sgd.step()
        return {name: term.detach() for name, term in terms.items()}

    def of_class(self, k: int, number: int) -> tuple[Tensor, ...]:
        config, split = self.config, self.dataset.train
        label = torch.tensor([k])
        draws = keyed.uniform(config.seed, number, label, "augmentation", DRAWS)
        scores = keyed.bits(config.seed, number, label, "real images", max(split.counts))
        chosen = scores[0, : split.counts[k]].argsort()[: min(config.batch_real, min(split.counts))]
        raw = split.images[split.labels == k][chosen]
        real = (raw / 255 - torch.tensor(self.dataset.mean)[:, None, None]) / torch.tensor(self.dataset.std)[
            :, None, None
        ]
        own = self.images[k * config.ipc : (k + 1) * config.ipc]
        strategy = parse_strategy(config.augmentation)
        augmented = augment(own[None], draws, strategy)[0]
        maps = [self.network.embed(side) for side in (augment(real[None], draws, strategy)[0], augmented)]
        member = self.pool.networks[self.pool.choice(config.seed, number)]
        cmi = reference.conditional_mutual_information(member.features(own)) / len(self.images)
        return (
            reference.distribution_matching(*maps),
            reference.covariance_matching(*maps, config.local),
            reference.class_centralization(member.features(augmented), config.alpha, config.beta),
            cmi,
        )


def close(actual: Tensor, expected: Tensor, relative: float = 1e-3) -> None:
    """Equal but for rounding, which may flip a ReLU here and there."""
    assert torch.cosine_similarity(actual.flatten(), expected.flatten(), 0) > 0.9999
    assert (actual - expected).norm() < relative * expected.norm()


CASES: dict[str, dict[str, Any]] = {
    "dm": {**ZERO, "mean_weight": 2.0},
    "dm+cm": {**ZERO, "mean_weight": 1.0, "covariance_weight": 0.3},
    "dm+cm rows": {**ZERO, "mean_weight": 1.0, "covariance_weight": 0.3, "local": "rows"},
    "cm": {**ZERO, "covariance_weight": 0.1},
    "dm+cc": {**ZERO, "mean_weight": 1.0, "centralization_weight": 0.05},
    "dm+cc exponential": {**ZERO, "mean_weight": 1.0, "centralization_weight": 0.05, "alpha": 0.02, "beta": 1.1},
    "dm+cmi": {**ZERO, "mean_weight": 1.0, "cmi_weight": 3000.0},
    "cc+cmi": {**ZERO, "centralization_weight": 0.02, "cmi_weight": 500.0},
    "all": {"mean_weight": 1.0, "covariance_weight": 0.3, "centralization_weight": 0.02, "cmi_weight": 500.0},
    "all, IPC 1": {**ALL, "ipc": 1},
    "all, IPC 10": {**ALL, "ipc": 10, "covariance_weight": 0.3},
    "all, not augmented": {**ALL, "augmentation": "none"},
    "all, more real images than there are": {**ALL, "batch_real": 99},
    "all, another seed": {**ALL, "seed": 12345},
    "all, AlexNet": {**ALL, "network": "alexnet", "width": 16, "depth": None},
    "all, VGG-11": {**ALL, "network": "vgg11", "depth": None},
    "all, another ConvNet": {**ALL, "activation": "leakyrelu", "pooling": "max"},
}


@pytest.mark.parametrize("case", CASES)
class TestOneIteration:
    """From the tenth iteration of a run on, so that no number is 0 by chance."""

    @pytest.fixture
    def both(self, case: str, dataset: Dataset, pool: Pool) -> tuple[Distiller, State, Plain]:
        settings = config(**CASES[case])
        state = make_state(settings, dataset)
        state.momentum.zero_()
        state.iteration = 10
        plain = Plain(settings, dataset, pool, state.images)
        return make_distiller(settings, dataset, pool, Plan(4, 5, 3, 7)), state, plain

    def test_has_the_plain_gradient_and_step(self, both: tuple[Distiller, State, Plain]) -> None:
        distiller, state, plain = both
        before = state.images.clone()
        distiller.iterate(state)
        plain.iterate(10)
        assert plain.images.grad is not None
        close(state.momentum, plain.images.grad)
        close(state.images - before, plain.images.detach() - before)
        assert state.iteration == 11

    def test_reports_the_plain_terms(self, both: tuple[Distiller, State, Plain]) -> None:
        distiller, state, plain = both
        reported = distiller.report(distiller.iterate(state))
        terms = plain.iterate(10)
        weights = dict(zip(LOSSES, (getattr(plain.config, key) for key in ALL), strict=True))
        used = {name: weight for name, weight in weights.items() if weight}
        assert list(reported) == ["loss", *used]
        for name in used:
            assert reported[name] == pytest.approx(terms[name].item(), rel=1e-4, abs=1e-6), name
        loss = sum(weight * terms[name].item() for name, weight in used.items())
        assert reported["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("case", ["dm+cm", "all"])
def test_several_iterations_are_sgd_with_momentum(case: str, dataset: Dataset, pool: Pool) -> None:
    settings = config(**CASES[case], image_lr=0.2)
    distiller, state = make_distiller(settings, dataset, pool), make_state(settings, dataset)
    state.momentum.zero_()
    start = state.images.clone()
    plain = Plain(settings, dataset, pool, start)
    for number in range(5):
        distiller.iterate(state)
        plain.iterate(number)
        close(state.images - start, plain.images.detach() - start)


def test_the_momentum_of_before_is_carried_on(dataset: Dataset) -> None:
    """At learning rate 0 the gradient is the same, so the momentum alone shows."""
    settings = config(**CASES["dm"], image_lr=0.0)
    distiller = make_distiller(settings, dataset)
    with_momentum, without = make_state(settings, dataset), make_state(settings, dataset)
    without.momentum.zero_()
    held, images = with_momentum.momentum.clone(), with_momentum.images.clone()
    for state in (with_momentum, without):
        distiller.iterate(state)
    torch.testing.assert_close(with_momentum.momentum - without.momentum, 0.6 * held)
    assert torch.equal(with_momentum.images, images)


@pytest.mark.parametrize("case", ["dm+cm rows", "dm+cc exponential", "dm+cmi", "all"])
@pytest.mark.parametrize(
    "plan", [Plan(1, 1, 1, 1), Plan(1, 8, 2, 3), Plan(3, 5, 99, 99), Plan(4, 3, 1, 7), Plan(1, 99, 3, 99)]
)
def test_chunks_do_not_matter(case: str, plan: Plan, dataset: Dataset, pool: Pool) -> None:
    settings = config(**CASES[case], ipc=5)
    whole, state = make_state(settings, dataset), make_state(settings, dataset)
    expected = make_distiller(settings, dataset, pool).iterate(whole)
    terms = make_distiller(settings, dataset, pool, plan).iterate(state)
    torch.testing.assert_close(terms, expected, rtol=1e-4, atol=1e-6)
    close(state.momentum, whole.momentum)


def test_a_class_without_a_loss_of_its_own_still_moves_by_momentum(dataset: Dataset) -> None:
    """IPC 1 and CM alone: there is no covariance to match by, so the gradient is 0."""
    settings = config(**CASES["cm"], ipc=1)
    state = make_state(settings, dataset)
    held = state.momentum.clone()
    make_distiller(settings, dataset).iterate(state)
    torch.testing.assert_close(state.momentum, 0.6 * held)
