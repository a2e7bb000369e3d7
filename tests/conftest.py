"""Every loss test runs on every backend, on every device where that backend can run here: see `oracle.py`."""

import os
import sys

import pytest
import torch
from oracle import DEVICES, EACH_KERNEL, INTERPRETED, runnable

from ddfast.operators.backends import interpreter_refusal

# Tests that ask for equal bits call PyTorch's convolutions without `find_device`, which says this for every command.
torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a fixed workspace


def pytest_configure(config):
    if INTERPRETED and (reason := interpreter_refusal()):
        raise pytest.UsageError(f"TRITON_INTERPRET=1: {reason}")
    config.addinivalue_line("markers", "operators(*names): the operators which a test's `backend` must implement")
    config.addinivalue_line("markers", "losses(*names): those of the module's LOSSES that a test's `loss` goes through")


def pytest_generate_tests(metafunc):
    """Fills in (loss, backend, device), (backend, device) or device, in modules with LOSSES or an `operators` mark."""
    wanted = metafunc.fixturenames
    operators = metafunc.definition.get_closest_marker("operators")
    losses = getattr(metafunc.module, "LOSSES", None)
    if losses and "loss" in wanted:
        named = metafunc.definition.get_closest_marker("losses")
        losses = [loss for loss in losses if named is None or loss.name in named.args]
        triples = [(loss, *pair) for loss in losses for pair in runnable(*loss.operators)]
        cases = [
            pytest.param(*triple, id=f"{triple[0].name}-{triple[1]}-{triple[2]}", marks=_slow(*triple))
            for triple in triples
        ]
        metafunc.parametrize(("loss", "backend", "device"), cases)
    elif operators and "backend" in wanted:
        pairs = runnable(*operators.args)
        metafunc.parametrize(("backend", "device"), pairs, ids=[f"{backend}-{device}" for backend, device in pairs])
    elif operators and "device" in wanted:
        metafunc.parametrize("device", DEVICES)


def _slow(loss, backend, device):
    """The interpreter takes its time: one loss for each way through the kernels is quick enough."""
    interpreted = backend == "triton" and device == "cpu"
    return [pytest.mark.full] if interpreted and loss.name not in EACH_KERNEL else []


# A minute each in the interpreter, or many alike: the quick half keeps another case of the same test.
INTERPRETED_SLOWLY = (
    "test_many_classes[triton",
    "test_bitwise_the_same_from_run_to_run[mm-moments-triton",
    "test_bitwise_the_same_from_run_to_run[mm-rows-triton",
    "test_bitwise_the_same_from_run_to_run[cm-maps-triton",
    "test_compiled_is_eager[mm-moments-triton",
    "test_compiled_is_eager[mm-triton-cpu-static",
    "test_a_probability_whose_mean_underflows_is_finite[triton-cpu-torch.float64",
    "test_any_number_of_classes[cx-triton-cpu-1000",
    "test_any_number_of_classes[cmi-none-triton-cpu-1000",
    "test_each_operation_is_the_published_one[(3, 5, 12)",
    "test_each_operation_is_the_published_one[(5, 2, 17)",
    "test_each_operation_is_the_published_one[(1, 9, 7)",
    "test_float32_is_as_accurate_as_eager[rotate-(3, 64, 64)",
    "test_float32_is_as_accurate_as_eager[scale-(3, 64, 64)",
    "test_products_of_any_tile[grey",
    "test_products_of_any_tile[bare",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items if INTERPRETED else ():
        if "triton" in item.nodeid and item.name.startswith(INTERPRETED_SLOWLY):
            item.add_marker(pytest.mark.full)


@pytest.fixture(autouse=True)
def planned_anew():
    """No plan of a launch outlives a test: many change how the work is cut."""
    launch = sys.modules.get("ddfast.operators.launch")
    if launch is not None:
        launch.forget()


@pytest.fixture(scope="module")
def poisoned():
    """Memory from `torch.empty` holds NaN, so an element that nothing wrote shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def matmul_flags():
    """Sets the global precision flags back to what a fresh process has; returns all that PyTorch shows of them."""

    def shown():
        cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        return torch.backends.fp32_precision, cuda.fp32_precision, mkldnn.fp32_precision

    yield shown
    torch.set_float32_matmul_precision("highest")
    for flags in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        flags.fp32_precision = "none"
