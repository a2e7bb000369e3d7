"""Whether CUDA graphs give the bits of single launches: losses with their gradients, and whole iterations."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import backends
from benchmarks.gpu.case import Case, Given, NotHere, Record, Wrong
from benchmarks.gpu.smoke import bits, runs
from benchmarks.iterations import Setting, engine
from ddfast import keyed
from ddfast.augment import DRAWS, parse_strategy, tabulate, transform
from ddfast.distill.config import Config
from ddfast.distill.setup import find_device
from ddfast.operators.backends import BACKENDS
from tests import oracle
from tests.oracle import Loss

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ITERATIONS = 6  # one to warm up, one recorded, four replayed
PRECISIONS = ("float32", "tf32", "bf16")
METHODS = ("dm", "iid-dm", "idm", "all")
TOY = {"classes": 2, "size": 16, "ipc": 2, "real": 4, "width": 4, "pool_width": 4, "depth": 2}


def loss_cases(given: Given) -> Iterator[Case]:
    """Sorted equal classes, as the engine has them; each graph is replayed on inputs that it was not recorded with."""
    for dtype_name, dtype in DTYPES.items():
        for loss in (*oracle.MATCHING, *oracle.MOMENTS, *oracle.COMPLEXITY):
            for backend in BACKENDS:
                if runs(backend, given.device, *loss.operators):
                    run = partial(captured_loss, given, loss, backend, dtype)
                    yield Case(f"{loss.name} {dtype_name} {backend}", run)
    for backend in backends("augment", given.device):
        yield Case(f"augment float32 {backend}", partial(captured_augment, given, backend, torch.float32))


def captured_loss(given: Given, loss: Loss, backend: str, dtype: torch.dtype) -> None:
    first, second = (oracle.uniform(loss.row, 4, 9, 5).to(given.device, dtype) for _ in range(2))
    inputs = first.syn.clone()
    work = partial(oracle.differentiate, loss.of(first, backend), inputs)
    changed = second.syn.flip(0) * 1.5
    agrees(given, lambda: list(work()), inputs, changed)


def captured_augment(given: Given, backend: str, dtype: torch.dtype) -> None:
    draws = keyed.uniform(0, 0, torch.arange(6), "captured", DRAWS)
    draws[:, 0] = (torch.arange(6) + 0.5) / 6  # every operation once
    table = tabulate(draws, parse_strategy(Config.augmentation), (16, 16)).to(given.device)
    inputs = torch.randn(6, 3, 3, 16, 16, device=given.device).to(dtype)
    upstream = torch.randn_like(inputs)

    def work() -> list[Tensor]:
        leaf = inputs.detach().requires_grad_()
        out = transform(leaf, table, backend=backend)
        return [out.detach(), torch.autograd.grad(out, leaf, upstream)[0]]

    agrees(given, work, inputs, torch.randn_like(inputs))


def agrees(given: Given, work: Callable[[], list[Tensor]], inputs: Tensor, changed: Tensor) -> None:
    """Records `work` on `inputs`, and compares what it replays on other numbers in the same place."""
    before, held = [it.clone() for it in work()], inputs.clone()
    recorded, replay = record(given, work)
    inputs.copy_(changed)
    expected = [it.clone() for it in work()]
    results = replay() or recorded
    for number, (one, other) in enumerate(zip(results, expected, strict=True)):
        if not torch.equal(bits(one), bits(other)):
            raise Wrong(f"result {number} of the graph has other bits, up to {_far(one, other):.1e} away")
    if all(torch.equal(one, other) for one, other in zip(before, expected, strict=True)):
        raise Wrong("both inputs have the same results, so that a stale replay would not show")
    inputs.copy_(held)


def record(given: Given, work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], list[Tensor] | None]]:
    """Where the results will be, and what brings them there; without CUDA the work itself, which returns them."""
    if not given.cuda:
        return [], work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a capture must not meet anything for the first time
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return results, graph.replay


def _far(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


# Whole iterations.


def iteration_cases(given: Given) -> Iterator[Case]:
    find_device("auto")  # cuDNN as in a run
    for method in METHODS:
        for precision in PRECISIONS if method == METHODS[0] else given.pick(PRECISIONS, PRECISIONS[:1]):
            run = partial(captured_iteration, given, method, precision)
            yield Case(f"{method} {precision}", run, limit=90)


def captured_iteration(given: Given, method: str, precision: str) -> Record:
    """Runs with and without a graph, side by side from the same images."""
    if precision == "tf32" and not given.cuda:
        raise NotHere("tf32 is of CUDA alone")
    setting = Setting(**given.pick({}, TOY), losses=method)
    runs: list[dict[str, Any]] = []
    for graph in (False, True):
        torch.manual_seed(0)
        distiller, state = engine(setting.config(precision).replace(graph=graph), setting, given.device)
        terms = [distiller.iterate(state).clone() for _ in range(ITERATIONS)]
        runs.append({"terms": terms, "state": state})
    plain, recorded = runs
    for number, (one, other) in enumerate(zip(plain["terms"], recorded["terms"], strict=True)):
        if not torch.equal(bits(one), bits(other)):
            raise Wrong(f"the terms of iteration {number} differ by up to {_far(one, other):.1e}")
    for name in ("images", "momentum"):
        one, other = (getattr(it["state"], name) for it in runs)
        if not torch.equal(bits(one), bits(other)):
            raise Wrong(f"the {name} differ by up to {_far(one, other):.1e} after {ITERATIONS} iterations")
    if all(torch.equal(plain["terms"][0], it) for it in plain["terms"][1:]):
        raise Wrong("all iterations have the same terms, so that a stale replay would not show")
    return {"terms": [it.tolist() for it in plain["terms"]]}
