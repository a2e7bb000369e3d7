"""`pytest benchmarks`: each case is measured once, all contenders in turns, and each benchmark reports one of them."""

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import environment
from benchmarks.baselines import BASELINES
from benchmarks.cases import CONSTANT, Case, backends
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.measure import Measured, described, measure
from benchmarks.replay import hand_over
from benchmarks.workloads import WORKLOADS
from ddfast.memory import keep_freed_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BUDGET, ROUNDS = 2.0, (5, 50)  # seconds and turns of a case


def pytest_addoption(parser: pytest.Parser) -> None:
    default = "full" if DEVICE.type == "cuda" else "cpu"
    parser.addoption("--scale", choices=("full", "cpu", "quick"), default=default, help="quick: only that it runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every benchmark of the module's OPERATORS, if it has some; those of one case one after the other."""
    if not hasattr(metafunc.module, "OPERATORS"):
        return
    plan = [
        (operator, workload, direction, contender)
        for operator in metafunc.module.OPERATORS
        for workload in WORKLOADS
        for direction in directions(operator)
        for contender in (*BASELINES, *backends(operator, DEVICE))
        if not (contender == "loop" and direction.endswith("graph"))
    ]
    metafunc.parametrize(("operator", "workload", "direction", "contender"), plan, ids=["-".join(row) for row in plan])


def directions(operator: str) -> list[str]:
    called = ["forward"] if operator in CONSTANT else ["forward", "backward", "both"]
    graphs = [f"{name}-graph" for name in called if name != "backward"]
    return called + (graphs if DEVICE.type == "cuda" else [])


@pytest.fixture(scope="session")
def alike() -> Iterator[None]:
    """What holds for all contenders: the allocator keeps freed memory, and nothing is compiled beforehand."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest, alike: None) -> Ceilings:
    return measure_ceilings(DEVICE, quick=request.config.getoption("--scale") == "quick")


@pytest.fixture(scope="session")
def here() -> dict[str, Any]:
    return environment.environment()


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest, alike: None) -> Callable[[Case], Measured]:
    quick = request.config.getoption("--scale") == "quick"
    latest: dict[Case, Measured] = {}

    def of(case: Case) -> Measured:
        if case not in latest:
            latest.clear()
            if not quick:  # where all workloads have the same two shapes
                torch.compiler.reset()
            latest[case] = measure(case, *((0.0, (2, 2)) if quick else (BUDGET, ROUNDS)))
        return latest[case]

    return of


@pytest.fixture
def report(
    request: pytest.FixtureRequest,
    benchmark: Any,
    measured: Callable[[Case], Measured],
    ceilings: Ceilings,
    here: dict[str, Any],
) -> Callable[..., None]:
    """Reports one contender, or fails with what is wrong with its results."""

    def of(operator: str, name: str, direction: str, contender: str) -> None:
        workload = WORKLOADS[name].at(request.config.getoption("--scale"))
        result = measured(Case(operator, workload, DEVICE))
        if contender in result.refused:
            pytest.fail(result.refused[contender], pytrace=False)
        samples = result.samples[contender]
        if direction not in samples:
            pytest.skip(result.not_captured[contender])

        benchmark.group = f"{operator} {name} {direction}"
        benchmark.extra_info |= described(
            result, Case(operator, workload, DEVICE), contender, direction, ceilings, here
        )
        hand_over(benchmark, samples[direction])

    return of
