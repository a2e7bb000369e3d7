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
from engine import ALL, make_pool, make_state, toy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddfast import keyed
from ddfast.augment import DRAWS
from ddfast.data import Dataset
from ddfast.distill import graph
from ddfast.distill import pool as pools
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.graph import Recorded
from ddfast.distill.late import LATE, Late
from ddfast.distill.loop import BLOCK, Distiller
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Ahead, Pool
from ddfast.distill.precision import convert
from ddfast.distill.pretrain import PoolConfig
from ddfast.training import Steps, build_network, optimizer

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


def stand_in(changed: Callable[[], list[Tensor]]) -> Callable[..., tuple[Any, Callable[[], None]]]:
    """`graph.record`, which leaves `changed()` and the generator as they were: a graph that is captured has not run."""

    def record(work: Callable[[], Any], generator: torch.Generator | None) -> tuple[Any, Callable[[], None]]:
        before = [(tensor, tensor.clone()) for tensor in changed()]
        drawn = generator.get_state() if generator else None
        with Capture() as capture:
            result = work()
        for tensor, held in before:
            tensor.detach().copy_(held)
        if generator:
            generator.set_state(drawn)
        return result, capture.replay

    return record


@dataclass
class Toy:
    config: Config
    dataset: Dataset
    pool: Pool

    def begin(self, plan: Plan, **keys: Any) -> tuple[Distiller, State]:
        config, device = self.config.replace(**keys), self.dataset.train.images.device
        network = convert(build_network(config, self.dataset).requires_grad_(False), config.precision, device)
        distiller, state = Distiller(config, self.dataset, network, self.pool, plan), make_state(config, self.dataset)
        return distiller, replace(state, images=state.images.to(device), momentum=state.momentum.to(device))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=CUDA)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    dataset = toy(classes=4, per_class=12, channels=3).to(request.param)
    pool = make_pool(tmp_path_factory.mktemp("pool"), dataset)
    config = Config(**ALL, ipc=3, batch_real=8, width=8, depth=2, pool="given", image_lr=0.2)
    return Toy(config, dataset, pool)


@pytest.fixture
def capture_on_cpus(made: Toy, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list[Tensor]]], None]:
    """Called with what a captured work changes, it has the stand-in capture where there is no CUDA."""

    def use(changed: Callable[[], list[Tensor]]) -> None:
        if made.dataset.train.images.device.type == "cpu":
            monkeypatch.setattr(graph, "record", stand_in(changed))
            monkeypatch.setattr(graph, "warm_up", lambda work: work())

    return use


def record_on_cpus(distiller: Distiller, state: State, capture_on_cpus: Any) -> None:
    """Makes `distiller` capture its iterations of `state`, and its teacher's steps, where there is no CUDA."""
    teacher = distiller.teacher

    def changed() -> list[Tensor]:
        taught = [*vars(teacher.student).values(), teacher.turn] if teacher and teacher.student else []
        return [state.images, state.momentum, *taught]

    capture_on_cpus(changed)
    if distiller.device.type == "cpu":
        distiller._steps = state, Recorded(lambda: distiller._step(state), distiller.generator)
        if teacher:
            teacher._learn = Recorded(teacher._step)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("augmentation", [Config.augmentation, "none"])
def test_replays_are_the_run_without_a_graph(plan: Plan, augmentation: str, made: Toy, capture_on_cpus: Any) -> None:
    """Six iterations: one to warm up, one recorded, four that draw other networks, images and augmentations."""
    assert torch.backends.cudnn.deterministic, "cuDNN may choose algorithms whose sums differ from call to call"
    plain, expected = made.begin(plan, graph=False, augmentation=augmentation)
    recorded, state = made.begin(plan, graph=True, augmentation=augmentation)
    record_on_cpus(recorded, state, capture_on_cpus)
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


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("plan", [PLANS["chunks"], PLANS["parts"]], ids=["chunks", "parts"])
def test_networks_of_a_queue_are_lent_and_taught_by_replays(
    plan: Plan, precision: str, made: Toy, capture_on_cpus: Any
) -> None:
    """... with their accuracy; new ones come, and other networks, batches and steps are the next one's."""
    keys = {"method": "idm", "partition": 2, "cross_entropy_weight": 0.1, "queue_every": 2, "queue_steps": 2}
    keys |= {"precision": precision, "centralization_weight": 0.0, "cmi_weight": 0.0}
    plain, expected = made.begin(plan, graph=False, **keys)
    recorded, state = made.begin(plan, graph=True, **keys)
    record_on_cpus(recorded, state, capture_on_cpus)
    entropies = []
    for _ in range(6):
        terms = plain.iterate(expected)
        assert torch.equal(recorded.iterate(state), terms)
        assert torch.equal(state.images, expected.images)
        assert torch.equal(state.momentum, expected.momentum)
        for name, tensor in vars(expected.queue).items():
            assert torch.equal(getattr(state.queue, name), tensor)
        entropies.append(float(terms[-1]))
    assert recorded._steps[1]._recorded is not None
    assert recorded.teacher._learn._recorded is not None
    assert len(set(entropies)) > 3, "a stale accuracy would give all the same, or none"
    assert state.queue.seen.sum() == 6 * 2 * 2 * 48
    assert len(state.queue.seen.unique()) > 2, "some networks learned more often than others"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strategy", [(), ("crop", "scale", "color")], ids=["plain", "augmented"])
def test_a_pool_network_trained_by_replays_is_that_of_plain_steps(
    strategy: tuple[str, ...], dtype: torch.dtype, made: Toy, capture_on_cpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of two whole batches, replayed from the third on, and a partial one, which is not."""
    monkeypatch.setattr("ddfast.training.BATCH", 20)
    split, ends = made.dataset.train, []
    for capture in (None, Recorded):
        generator = keyed.generator(0, 0, "test", split.images.device)
        network = build_network(PoolConfig(network="convnet", width=8, depth=2), made.dataset, generator)
        sgd = optimizer(network, 0.05)
        keys = {"prepare": made.dataset.normalise, "strategy": strategy, "dtype": dtype, "capture": capture}
        steps = Steps(network, sgd, split.images, split.labels, **keys)
        parameters = list(network.parameters())
        capture_on_cpus(lambda: [*parameters, *(sgd.state[it]["momentum_buffer"] for it in parameters)])  # noqa: B023
        shuffle, ticks, course = torch.Generator().manual_seed(3), [], []
        for _ in range(3):
            steps.epoch(shuffle, lambda: ticks.append(1))  # noqa: B023
            momentum = [sgd.state[it]["momentum_buffer"] for it in parameters]
            course.append(torch.cat([it.detach().flatten().clone() for it in (*parameters, *momentum)]))
        assert len(ticks) == 3 * 3
        ends.append(course)
    assert steps._whole._recorded is not None
    for got, expected in zip(*ends, strict=True):
        assert torch.equal(got, expected)
    assert not torch.equal(ends[0][1], ends[0][2])


def test_another_state_is_another_graph(made: Toy, capture_on_cpus: Any) -> None:
    """... with no trace of the first."""
    distiller, first = made.begin(PLANS["chunks"])
    _, second = made.begin(PLANS["chunks"])
    record_on_cpus(distiller, first, capture_on_cpus)
    for _ in range(3):
        distiller.iterate(first)
    held = first.images.clone()
    for _ in range(3):
        distiller.iterate(second)
    assert torch.equal(first.images, held)
    assert torch.equal(second.images, held)


@CUDA
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("keys", [{}, {"method": "idm", "cross_entropy_weight": 0.1, "queue_every": 1}], ids=str)
def test_an_iteration_never_waits_for_the_device(made: Toy, keys: dict[str, Any], graph: bool) -> None:
    """Neither does the log, which reads what an earlier one gave."""
    distiller, state = made.begin(PLANS["parts"], graph=graph, **keys)
    late = Late(distiller.device)
    for _ in range(LATE + 2):  # the first are warm, and record
        late.put(state.iteration, distiller.iterate(state))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2 * BLOCK):
            late.put(state.iteration, distiller.iterate(state))
            assert late.due(state.iteration)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CUDA
def test_a_step_of_a_pool_network_never_waits_for_the_device(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddfast.training.BATCH", 20)
    dataset = made.dataset
    device = dataset.train.images.device
    network = build_network(PoolConfig(network="convnet", width=8, depth=2), dataset, torch.Generator(device))
    keys = {"prepare": dataset.normalise, "strategy": ("crop", "scale"), "capture": Recorded}
    steps = Steps(network, optimizer(network, 0.01), dataset.train.images, dataset.train.labels, **keys)
    steps.epoch(torch.Generator(), lambda: None)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for count in (20, 20, 8):
            steps.step(torch.arange(count, device=device), torch.rand(count, DRAWS))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CUDA
def test_late_rows_are_those_of_their_iterations_though_replays_write_over_them(made: Toy) -> None:
    plain, expected = made.begin(PLANS["chunks"], graph=False)
    recorded, state = made.begin(PLANS["chunks"], graph=True)
    late, read, wanted = Late(recorded.device), [], []
    for number in range(3 * LATE):
        late.put(number, recorded.iterate(state))
        read += late.due(number)
        wanted.append((number, plain.iterate(expected).tolist()))
    assert len(read) == 2 * LATE
    assert read + late.rest() == wanted


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
