"""A captured iteration: what it may depend on, and that replaying it is the run without it, bit for bit.

Without a GPU a stand-in captures: it keeps every call that reaches PyTorch's dispatcher, with its tensors, and replays
the call on them. A number that the host has put into a call is as stale there as it is in a CUDA graph.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import ALL, make_distiller, make_pool, make_state, toy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddfast.data import Dataset
from ddfast.distill import graph
from ddfast.distill import pool as pools
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.graph import Recorded
from ddfast.distill.loop import Distiller
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Ahead, Pool

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLANS = {"whole": Plan(4, 8, 3, 99), "chunks": Plan(3, 8, 3, 5), "parts": Plan(1, 3, 2, 2)}


class Capture(TorchDispatchMode):
    """Every call with its tensors; the work itself is done as well."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, overload: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if overload in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{overload} waits for the device")
        result = overload(*arguments, **(options or {}))
        self.calls.append((overload, arguments, options or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for overload, arguments, options, result in self.calls:
            again = overload(*arguments, **options)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def stand_in(state: State) -> Callable[..., tuple[Tensor, Callable[[], None]]]:
    """`graph.record`, which leaves `state` and the generator as they were: a graph that is captured has not run."""

    def record(work: Callable[[], Tensor], generator: torch.Generator) -> tuple[Tensor, Callable[[], None]]:
        before = state.images.clone(), state.momentum.clone(), generator.get_state()
        with Capture() as capture:
            result = work()
        state.images.copy_(before[0])
        state.momentum.copy_(before[1])
        generator.set_state(before[2])
        return result, capture.replay

    return record


@dataclass
class Toy:
    config: Config
    dataset: Dataset
    pool: Pool

    def begin(self, plan: Plan, **keys: Any) -> tuple[Distiller, State]:
        config = self.config.replace(**keys)
        distiller, state = make_distiller(config, self.dataset, self.pool, plan), make_state(config, self.dataset)
        device = self.dataset.train.images.device
        return distiller, replace(state, images=state.images.to(device), momentum=state.momentum.to(device))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=CUDA)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    dataset = toy(classes=4, per_class=12, channels=3).to(request.param)
    pool = make_pool(tmp_path_factory.mktemp("pool"), dataset)
    config = Config(**ALL, ipc=3, batch_real=8, width=8, depth=2, pool="given", image_lr=0.2)
    return Toy(config, dataset, pool)


def record_on_cpus(distiller: Distiller, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `distiller` capture its iterations of `state` where there is no CUDA."""
    if distiller.device.type == "cpu":
        monkeypatch.setattr(graph, "record", stand_in(state))
        monkeypatch.setattr(graph, "warm_up", lambda work: work())
        distiller._steps = state, Recorded(lambda: distiller._step(state), distiller.generator)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("augmentation", [Config.augmentation, "none"])
def test_replays_are_the_run_without_a_graph(
    plan: Plan, augmentation: str, made: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six iterations: one to warm up, one recorded, four that draw other networks, images and augmentations."""
    assert torch.backends.cudnn.deterministic, "cuDNN may choose algorithms whose sums differ from call to call"
    plain, expected = made.begin(plan, graph=False, augmentation=augmentation)
    recorded, state = made.begin(plan, graph=True, augmentation=augmentation)
    record_on_cpus(recorded, state, monkeypatch)
    seen = []
    for _ in range(6):
        terms = plain.iterate(expected)
        assert torch.equal(recorded.iterate(state), terms)
        assert torch.equal(state.images, expected.images)
        assert torch.equal(state.momentum, expected.momentum)
        seen.append(terms.clone())
    assert isinstance(recorded._steps[1], Recorded)
    assert recorded._steps[1]._recorded is not None
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen)), "a stale replay would look right"


@pytest.mark.parametrize("plan", [PLANS["chunks"], PLANS["parts"]], ids=["chunks", "parts"])
def test_networks_of_a_queue_are_lent_to_the_graph(plan: Plan, made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """... with their accuracy, while new ones come and all of them learn outside of it."""
    keys = {"method": "idm", "partition": 2, "cross_entropy_weight": 0.1, "queue_every": 2, "queue_steps": 1}
    plain, expected = made.begin(plan, graph=False, **keys)
    recorded, state = made.begin(plan, graph=True, **keys)
    record_on_cpus(recorded, state, monkeypatch)
    entropies = []
    for _ in range(6):
        terms = plain.iterate(expected)
        assert torch.equal(recorded.iterate(state), terms)
        assert torch.equal(state.images, expected.images)
        assert torch.equal(state.momentum, expected.momentum)
        entropies.append(float(terms[-1]))
    assert recorded._steps[1]._recorded is not None
    assert len(set(entropies)) > 3, "a stale accuracy would give all the same, or none"
    for name, tensor in vars(expected.queue).items():
        assert torch.equal(getattr(state.queue, name), tensor)


def test_another_state_is_another_graph(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """... with no trace of the first."""
    distiller, first = made.begin(PLANS["chunks"])
    _, second = made.begin(PLANS["chunks"])
    record_on_cpus(distiller, first, monkeypatch)
    for _ in range(3):
        distiller.iterate(first)
    held = first.images.clone()
    for _ in range(3):
        distiller.iterate(second)
    assert torch.equal(first.images, held)
    assert torch.equal(second.images, held)


@CUDA
@pytest.mark.parametrize("keys", [{}, {"method": "idm", "cross_entropy_weight": 0.1, "queue_every": 1}], ids=str)
def test_an_iteration_never_waits_for_the_device(made: Toy, keys: dict[str, Any]) -> None:
    distiller, state = made.begin(PLANS["parts"], graph=False, **keys)
    distiller.iterate(state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        distiller.iterate(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Streams:
    """What CUDA's streams are asked for, in order, where there are none."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.on = "main"

    def Stream(self, device: Any) -> "Streams._Stream":
        return Streams._Stream(self, "side")

    def current_stream(self) -> "Streams._Stream":
        return Streams._Stream(self, self.on)

    def stream(self, stream: "Streams._Stream") -> Any:
        return stream

    class _Stream:
        def __init__(self, log: "Streams", name: str) -> None:
            self.log, self.name = log, name

        def wait_stream(self, other: "Streams._Stream") -> None:
            self.log.asked.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            self.log.on = self.name

        def __exit__(self, *_: Any) -> None:
            self.log.on = "main"


class TestStreamedPool:
    """Networks in host memory: the one of this iteration is there, and the next one is on its way."""

    @pytest.fixture
    def log(self, monkeypatch: pytest.MonkeyPatch) -> Streams:
        streams = Streams()
        for name in ("Stream", "current_stream", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
        copy = pools._copy_weights

        def copying(source: Any, target: Any) -> None:
            streams.asked.append(f"copy on {streams.on}")
            copy(source, target)

        monkeypatch.setattr(pools, "_copy_weights", copying)
        return streams

    def test_hands_over_what_it_fetched_and_fetches_the_next(self, made: Toy, log: Streams) -> None:
        pool = Pool(made.pool.networks, made.dataset.train.images.device)
        pool._ahead = Ahead(pool.member)
        for number in range(20):
            log.asked.clear()
            pool.draw(0, number)
            drawn = pool.networks[pool.choice(0, number)]
            for held, expected in zip(pool.member.parameters(), drawn.parameters(), strict=True):
                assert torch.equal(held, expected)
            fetch = ["side waits for main", "copy on side"]
            assert log.asked == [*(fetch if number == 0 else []), "main waits for side", "copy on main", *fetch]

    def test_gives_what_is_asked_for_in_any_order(self, made: Toy, log: Streams) -> None:
        pool = Pool(made.pool.networks, made.dataset.train.images.device)
        pool._ahead = Ahead(pool.member)
        for number in (5, 1, 1, 17, 3):
            pool.draw(0, number)
            drawn = pool.networks[pool.choice(0, number)]
            assert torch.equal(pool.member.head.weight, drawn.head.weight)


@CUDA
def test_a_streamed_pool_gives_the_run_of_a_resident_one(
    tmp_path: Path, made: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = made.dataset.to("cuda")
    make_pool(tmp_path, dataset)
    ends = []
    for fit in (True, False):
        monkeypatch.setattr("ddfast.distill.pool._fit", lambda paths, device, fit=fit: fit)
        pool = Pool.load(tmp_path, dataset)
        assert pool.networks[0].head.weight.is_cuda == fit
        assert fit or all(weight.is_pinned() for weight in pool.networks[0].parameters())
        distiller, state = Toy(made.config, dataset, pool).begin(PLANS["chunks"])
        for _ in range(8):
            distiller.iterate(state)
        ends.append(state.images)
    assert torch.equal(*ends)
