"""Every operator by every backend in every dtype and layout: right, without a gap, and the same bits twice.

Results are compared with float64 by the rule of the tests (tests/oracle.py). What an operator allocates is poisoned
with NaN, so that an element nothing wrote shows.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases as benchmark_cases
from benchmarks.calls import CONVS, NORMS
from benchmarks.environment import ROOT
from benchmarks.gate import Gate
from benchmarks.gpu.case import Case, Given, Record, Wrong
from benchmarks.workloads import WORKLOADS, Workload
from ddfast.distill.precision import convolutions, lay
from ddfast.networks import build
from ddfast.operators.backends import BACKENDS, refusal
from tests import oracle
from tests.oracle import Batch, Loss

sys.path.append(str(ROOT / "tests"))
import test_blocks as blocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = {"": torch.contiguous_format, " channels_last": torch.channels_last}
STANDARD = ("c10-ipc10", "tiny-ipc50", "tiny-rows-ipc10", "c10-ipc50", "c10-ipc1000")
OPERATORS = ("moment_matching", "class_complexity", "class_moments", "augment", "augment_real")
AUGMENTED = ("float32", "float64")
SEEDS = 3  # errors are the worst over so many batches: one error of one scalar may be nothing by chance
ROWS = 64  # images of a standard block
NETWORKS = {
    "convnet": ("convnet", 32, {}),
    "convnet 4 blocks": ("convnet", 64, {"depth": 4}),
    "resnet18": ("resnet18", 32, {}),
}

Call = Callable[[], Sequence[Tensor]]


def cases(given: Given) -> Iterator[Case]:
    """What is used by default in float32 comes first, then what a run in bfloat16 takes, then all the rest."""
    for dtype in ("float32", "bfloat16"):
        for kind in (standard, standard_blocks, networks):
            yield from kind(given, dtype)
    for dtype in given.pick(tuple(DTYPES), ("float32", "bfloat16")):
        yield from small(given, dtype)
        yield from small_blocks(given, dtype)
    for dtype in ("float16", "float64"):
        yield from standard(given, dtype)
        yield from standard_blocks(given, dtype)


def runs(backend: str, device: torch.device, *operators: str) -> bool:
    return all(refusal(backend, operator, device) is None for operator in operators)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory from `torch.empty` holds NaN."""
    enabled, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def twice(call: Call) -> Sequence[Tensor]:
    """What a call gives; raises `Wrong` where a second one gives other bits."""
    with poisoned():
        first, second = call(), call()
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        if not torch.equal(bits(one), bits(other)):
            far = (one.double() - other.double()).abs().max().item()
            raise Wrong(f"result {number} has other bits in a second call, up to {far:.1e} away")
    return first


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def judge(triples: Sequence[Sequence[tuple[Tensor, Tensor, Tensor]]], dtype: torch.dtype, backend: str) -> Record:
    """The worst errors of (actual, eager, exact), a list for each result; raises `Wrong` where one breaks the rule."""
    ours = [max(oracle.frobenius(actual, exact) for actual, _, exact in rows) for rows in triples]
    eager = [max(oracle.frobenius(it, exact) for _, it, exact in rows) for rows in triples]
    found = {"error": max(ours), "eager_error": max(eager)}
    for number, rows in enumerate(triples):
        try:
            oracle.assert_accurate(list(rows), dtype, backend)
        except AssertionError as error:
            raise Wrong(
                f"result {number} {error}", **{k: v for k, v in found.items() if k != "error"}, worst=ours
            ) from None
    return found


# Losses and augmentation.


def small(given: Given, dtype: str) -> Iterator[Case]:
    """Rows in any order with empty classes, sorted equal classes, and features in channels_last."""
    for loss in (*oracle.MATCHING, *oracle.MOMENTS, *oracle.COMPLEXITY):
        for backend in BACKENDS:
            if runs(backend, given.device, *loss.operators):
                run = partial(small_loss, given, loss, backend, DTYPES[dtype])
                yield Case(f"{loss.name} small {dtype} {backend}", run)


def small_loss(given: Given, loss: Loss, backend: str, dtype: torch.dtype) -> Record:
    rows: list[list[tuple[Tensor, Tensor, Tensor]]] = [[], []]
    for seed in range(given.pick(SEEDS, 1)):
        for form in (oracle.batch(loss.row, seed=seed), oracle.uniform(loss.row, 3, 7, 4)):
            batch = form.to(given.device, dtype)
            if len(loss.row) == 3 and seed % 2:
                last = {"memory_format": torch.channels_last}
                batch = replace(batch, real=batch.real.contiguous(**last), syn=batch.syn.contiguous(**last))
            actual = twice(lambda batch=batch: oracle.differentiate(loss.of(batch, backend), batch.syn))
            eager, exact = loss.expected(batch), loss.expected(batch.exact())
            for result, triple in zip(rows, zip(actual, eager, exact, strict=True), strict=True):
                result.append(triple)
    return judge(rows, dtype, backend)


def standard(given: Given, dtype: str) -> Iterator[Case]:
    names = given.pick(STANDARD, STANDARD[1:3]) if dtype in ("float32", "bfloat16") else STANDARD[:1]
    for name in names:
        workload = WORKLOADS[name].at("quick" if given.toy else "full")
        for operator in OPERATORS:
            if operator.startswith("augment") and dtype not in AUGMENTED:
                continue
            for backend in benchmark_cases.backends(operator, given.device):
                run = partial(standard_operator, given, operator, workload, backend, DTYPES[dtype])
                yield Case(f"{operator} {name} {dtype} {backend}", run, limit=60)


def standard_operator(given: Given, operator: str, workload: Workload, backend: str, dtype: torch.dtype) -> Record:
    case = benchmark_cases.Case(operator, workload, given.device)
    batch, gate = judged(case, dtype)
    bind = case.contender(backend)
    results = twice(lambda: list(gate.results(bind(batch), batch).values()))
    eager, exact = (list(it[0].values()) for it in (gate.eager, gate.exact))
    return judge([[triple] for triple in zip(results, eager, exact, strict=True)], dtype, backend)


@functools.lru_cache(maxsize=1)  # all backends of a case come one after the other
def judged(case: benchmark_cases.Case, dtype: torch.dtype) -> tuple[Batch, Gate]:
    """Inputs, with what eager PyTorch and float64 make of them."""
    batch = case.batch(0).to(dtype)
    return batch, Gate(case, [batch])


# Blocks and networks.


def small_blocks(given: Given, dtype: str) -> Iterator[Case]:
    for block in given.pick(blocks.BLOCKS, [blocks.NORMS[0], blocks.CONVS[0]]):
        for layout, memory_format in LAYOUTS.items():
            for backend in BACKENDS:
                if runs(backend, given.device, *(blocks.CONV if block.conv else blocks.NORM)):
                    drawn = [block.inputs(seed, layout=memory_format) for seed in range(given.pick(SEEDS, 1))]
                    run = partial(check_block, given, block, drawn, backend, DTYPES[dtype])
                    yield Case(f"{block.name} block small{layout} {dtype} {backend}", run)


def standard_blocks(given: Given, dtype: str) -> Iterator[Case]:
    if dtype == "float64":
        return
    for layout, memory_format in LAYOUTS.items():
        for name, (channels, side, pool) in given.pick(list(NORMS.items()), list(NORMS.items())[::3]):
            shape = (given.pick(ROWS, 2), given.pick(channels, 4), given.pick(side, 8), given.pick(side, 8))
            block = blocks.Block(name, pool=pool, residual=not pool, shape=shape)
            yield from _standard_block(given, block, dtype, memory_format, name + layout)
        for name, (channels, side, padding) in given.pick(list(CONVS.items()), list(CONVS.items())[:1]):
            shape = (given.pick(ROWS, 2), channels, given.pick(side, 8), given.pick(side, 8))
            block = blocks.Block(name, conv=True, padding=padding, shape=shape)
            yield from _standard_block(given, block, dtype, memory_format, name + layout)


def _standard_block(given: Given, block: Any, dtype: str, layout: torch.memory_format, name: str) -> Iterator[Case]:
    for backend in BACKENDS:
        if runs(backend, given.device, *(blocks.CONV if block.conv else blocks.NORM)):

            def run(backend: str = backend) -> Record:
                inputs = block.inputs(layout=layout)
                if block.conv:  # to the channels of a ConvNet
                    width = given.pick(128, 8)
                    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                    inputs = [
                        inputs[0],
                        0.3 * draw(width, block.shape[1], 3, 3),
                        1 + 0.5 * draw(width),
                        0.5 * draw(width),
                    ]
                return check_block(given, block, [inputs], backend, DTYPES[dtype])

            yield Case(f"{name} {dtype} {backend}", run)


def check_block(given: Given, block: Any, drawn: Sequence[list[Tensor]], backend: str, dtype: torch.dtype) -> Record:
    rows: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for inputs in drawn:
        held = [it.to(given.device, dtype) for it in inputs]
        actual = twice(lambda held=held: block.differentiate(partial(block, backend=backend), held))
        with convolutions("float32"):
            eager = block.differentiate(block.modules, held)
        exact = block.differentiate(block.modules, [it.double() for it in held])
        rows = rows or [[] for _ in actual]
        for result, triple in zip(rows, zip(actual, eager, exact, strict=True), strict=True):
            result.append(triple)
    return judge(rows, dtype, backend)


def networks(given: Given, dtype: str) -> Iterator[Case]:
    """Features and the gradient to the images, fused against plain modules, as a run has them."""
    for name, (kind, side, keys) in NETWORKS.items():
        yield Case(f"network {name} {dtype}", partial(network, given, kind, side, keys, DTYPES[dtype]), limit=60)


def network(given: Given, kind: str, side: int, keys: dict[str, Any], dtype: torch.dtype) -> Record:
    def made(fused: bool, dtype: torch.dtype) -> Any:
        generator = torch.Generator(given.device).manual_seed(0)
        shape = {"channels": 3, "num_classes": 10, "size": (side, side), "width": given.pick(None, 8)}
        shape = {key: value for key, value in shape.items() if value is not None}
        options = {"device": given.device, "generator": generator, "fused": fused}
        network = build(kind, **shape, **keys, **options).to(dtype).requires_grad_(False)
        if fused:
            lay(network, "float32" if dtype == torch.float32 else "bf16", given.device)
        return network

    images = torch.randn(given.pick(16, 2), 3, side, side, device=given.device).to(dtype)

    def differentiated(network: Any, x: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        features = network.features(leaf)
        return [features.detach(), torch.autograd.grad(features, leaf, torch.ones_like(features))[0]]

    with convolutions("float32"):
        actual = twice(lambda: differentiated(made(True, dtype), images))
        eager = differentiated(made(False, dtype), images)
    exact_network = made(False, dtype).double()
    exact = differentiated(exact_network, images.double())
    far = [oracle.frobenius(one, other) for one, other in zip(actual, exact, strict=True)]
    plain = [oracle.frobenius(one, other) for one, other in zip(eager, exact, strict=True)]
    found = {"errors": far, "eager_errors": plain}
    if any(not one <= max(2 * other, 1e-5) for one, other in zip(far, plain, strict=True)):
        raise Wrong(f"features and gradient are {far} off, plain modules {plain}", **found)
    return found


def again(given: Given) -> Iterator[Case]:
    """The cases that failed before, "STEP: CASE" each, of whatever step they are."""
    from benchmarks.gpu.steps import STEPS  # only here: it names this module

    for step in STEPS:
        wanted = {name.partition(": ")[2] for name in given.again if name.startswith(f"{step.name}: ")}
        if wanted:
            for case in step.load()(given):
                if case.name in wanted:
                    yield replace(case, name=f"{step.name}: {case.name}")
