"""The plan of chunks: what it counts is what is allocated, and it keeps a run's memory within its budget."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine import ALL, make_distiller, make_pool, make_state, toy
from torch import Tensor, nn

from ddfast.data import Dataset
from ddfast.distill.config import Config
from ddfast.distill.plan import Plan, footprint, make_plan
from ddfast.distill.pool import Pool
from ddfast.networks import Network, build


def network(name: str, **keys: Any) -> Network:
    return build(
        name, **{"channels": 3, "num_classes": 5, "size": (16, 16), **keys}, device="cpu", generator=torch.Generator()
    ).requires_grad_(False)


NETWORKS = {
    "convnet": lambda: network("convnet", width=8, depth=2),
    "deep": lambda: network("convnet", width=6, depth=3, norm="none"),
    "grey": lambda: network("convnet", channels=1, width=8, depth=1, norm="group"),
    "sigmoid": lambda: network("convnet", width=8, depth=2, activation="sigmoid", pooling="max"),
    "unpooled": lambda: network("convnet", width=8, depth=2, activation="leakyrelu", pooling="none"),
    "alexnet": lambda: network("alexnet", width=16),
    "normed alexnet": lambda: network("alexnet", width=16, norm="instance"),
    "vgg11": lambda: network("vgg11", width=16),
    "resnet18": lambda: network("resnet18", width=16),
}


def kept(work: Callable[[], Tensor]) -> int:
    """Bytes that autograd really keeps, counted by storage and without the network's own parameters."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = work()  # held, so that no storage is freed and its address used again
    total = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    del output
    return total


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that exist at one time, beyond those from before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    most = now = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["embed", "features"])
class TestFootprint:
    def test_counts_what_is_kept_for_backward(self, name: str, method: str) -> None:
        net = NETWORKS[name]()
        shape = (net.config["channels"], 16, 16)
        images = torch.rand(7, *shape, requires_grad=True)
        counted = 7 * footprint(net, method, shape).kept
        really = kept(lambda: getattr(net, method)(images))
        assert really <= counted <= 1.25 * really

    def test_counts_the_peak_without_gradient(self, name: str, method: str) -> None:
        net = NETWORKS[name]()
        shape = (net.config["channels"], 16, 16)
        images = torch.rand(50, *shape)
        with torch.no_grad():
            really = peak(lambda: getattr(net, method)(images)) + images.nbytes
        assert 0.5 * really <= 50 * footprint(net, method, shape).peak <= 2 * really

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_counts_the_features(self, name: str, method: str, dtype: torch.dtype) -> None:
        net = NETWORKS[name]().to(dtype)
        shape = (net.config["channels"], 16, 16)
        features = getattr(net, method)(torch.rand(1, *shape, dtype=dtype))
        assert footprint(net, method, shape).features == features.nbytes


def test_footprint_leaves_the_network_alone() -> None:
    net = NETWORKS["convnet"]()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    footprint(net, "embed", (3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(parameter.is_meta for parameter in net.parameters())


SETTINGS = {
    "dm+cm": {"ipc": 3, "batch_real": 16},
    "many synthetic": {"ipc": 14, "batch_real": 8},
    "all": {**ALL, "ipc": 10, "batch_real": 16, "pool": "given"},
    "turned": {**ALL, "ipc": 5, "batch_real": 32, "augmentation": "rotate", "pool": "given"},
}
BUDGET = 3 << 19


def many_classes(classes: int) -> Dataset:
    return toy(classes, per_class=34, size=16, channels=3, test=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), many_classes(2), 1, width=16, depth=1)


class TestMemory:
    @pytest.fixture(params=SETTINGS)
    def config(self, request: pytest.FixtureRequest) -> Config:
        return Config(width=16, depth=2, **SETTINGS[request.param])

    def plan(self, config: Config, pool: Pool, budget: int) -> Plan:
        dataset = many_classes(40)
        network = make_distiller(config, dataset).network
        return make_plan(
            config.replace(memory_budget=str(budget)), dataset, network, pool if config.needs_pool else None
        )

    def peak(self, config: Config, pool: Pool, classes: int, plan: Plan) -> int:
        dataset = many_classes(classes)
        state = make_state(config, dataset)
        distiller = make_distiller(config, dataset, pool if config.needs_pool else None, plan)
        distiller.iterate(state)
        return peak(lambda: distiller.iterate(state))

    def test_stays_within_the_budget_and_uses_it(self, config: Config, pool: Pool) -> None:
        plan = self.plan(config, pool, BUDGET)
        assert 1 < plan.classes < 20, "neither of the limits of this test's data"
        used = self.peak(config, pool, 20, plan)
        assert BUDGET / 5 < used <= BUDGET

    def test_stays_within_a_budget_too_small_for_a_class(self, config: Config, pool: Pool) -> None:
        """... as long as what is not counted, the statistics of a class, is not all there is."""
        config = config.replace(ipc=40, batch_real=34)
        plan = self.plan(config, pool, BUDGET)
        assert plan.classes == 1
        assert 1 < plan.synthetic < 40
        assert BUDGET / 5 < self.peak(config, pool, 2, plan) <= BUDGET

    def test_counts_the_pieces_of_a_partition(self, config: Config, pool: Pool) -> None:
        config = config.replace(partition=2)
        plan = self.plan(config, pool, 2 * BUDGET)
        assert plan.classes < 8
        assert 2 * BUDGET / 6 < self.peak(config, pool, 8, plan) <= 2 * BUDGET

    def test_does_not_grow_with_the_classes(self, config: Config, pool: Pool) -> None:
        config = replace(
            config, augmentation="rotate"
        )  # of several the draws say which, and so how much memory it takes
        plan = self.plan(config, pool, BUDGET)
        few, many = (self.peak(config, pool, classes, plan) for classes in (10, 40))
        assert many < 1.05 * few

    def test_a_larger_budget_gives_larger_chunks(self, config: Config, pool: Pool) -> None:
        plans = [self.plan(config, pool, BUDGET << doubling) for doubling in range(4)]
        assert all(min(2 * a.classes, 40) <= b.classes for a, b in itertools.pairwise(plans))
        everything = Plan(40, config.batch_real, config.ipc, 40 * config.batch_real)
        assert self.plan(config, pool, 1 << 40) == everything

    def test_parts_are_even(self, config: Config, pool: Pool) -> None:
        config = config.replace(ipc=33, batch_real=34)
        for budget in (BUDGET // 8, BUDGET // 2, BUDGET):
            plan = self.plan(config, pool, budget)
            for total, part in ((33, plan.synthetic), (34, plan.real)):
                assert total % part == 0 or part - total % part < -(-total // part)

    def test_the_smallest_budget_still_works(self, config: Config, pool: Pool) -> None:
        assert self.plan(config, pool, 1) == Plan(1, 1, 1, 1)
