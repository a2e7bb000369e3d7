"""What is particular to the native operators; what all backends must do is in the tests of the losses.

`DDFAST_CAPABILITY=avx2 make test` runs those for another instruction set than the widest.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from oracle import (
    COMPLEXITY,
    DTYPES,
    MATCHING,
    assert_accurate,
    assert_close,
    batch,
    capabilities_to_test,
    differentiate,
    uniform,
)

import ddfast.functional as DF
from ddfast import ClassMoments, ClassSegments
from ddfast.operators import backends, native

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(native.module is None, reason=backends.absent.get("cpp", "")),
]
CAPABILITIES = native.module.capabilities() if native.module else []


@pytest.fixture
def capability(request):
    """Runs the test on one of the instruction sets of this machine."""
    before = native.module.build_info()["in use"]
    native.module.set_capability(request.param)
    yield request.param
    native.module.set_capability(before)


every_capability = pytest.mark.parametrize("capability", capabilities_to_test(), indirect=True)


@pytest.fixture
def threads():
    """Sets the number of threads back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Instruction sets


@every_capability
@pytest.mark.parametrize("loss", MATCHING + COMPLEXITY, ids=lambda loss: loss.name)
def test_every_instruction_set_is_accurate(capability, loss):
    """Rows of several registers and a rest, in every dtype."""
    for dtype in DTYPES:
        values, gradients = [], []
        for seed in range(3):
            b = batch((*loss.row[:-1], 37), seed=seed)
            b = replace(b, syn=b.syn / 4, real=b.real / 4).to(dtype)
            value, gradient = differentiate(loss.of(b, "cpp"), b.syn)
            values.append((value, loss.expected(b)[0], loss.expected(b.exact())[0]))
            gradients.append((gradient, loss.expected(b)[1], loss.expected(b.exact())[1]))
        assert_accurate(values, dtype, "cpp")
        assert_accurate(gradients, dtype, "cpp")


@every_capability
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_half_precision(capability, dtype):
    """Read exactly; written as PyTorch rounds them."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite() & (numbers.abs() < torch.finfo(dtype).max / 4)]
    options = (1.0, 0.0, None, 0.0, "sum")
    run, back = torch.ops.ddfast.class_complexity.cpp, torch.ops.ddfast.class_complexity_backward.cpp
    centers = run(numbers[None], None, None, 1, 1, *options, True)[2]
    assert torch.equal(centers[0], numbers.float())

    pair = torch.stack([numbers, -numbers])  # their mean is 0, and the gradient 2·z
    state = run(pair, None, None, 2, 1, *options, True)[2:]
    ties = (1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11)
    for upstream in torch.tensor([1 / 3, *ties]):
        gradient = back(upstream, pair, None, None, 2, 1, *state, *options)
        assert torch.equal(gradient, (upstream * (2 * pair.float())).to(dtype))


@every_capability
def test_exponentials_and_logarithms(capability):
    """log softmax (0, −x) over all of float's range, to 2 ulp; where a probability is no normal number it may be 0."""
    x = torch.cat([torch.linspace(0, 120, 20001), torch.logspace(-30, 0, 1001), torch.tensor([torch.inf])])
    features = torch.stack([torch.zeros_like(x), -x], 1)
    log_q = torch.ops.ddfast.class_complexity.cpp(features, None, None, 1, len(x), 0.0, 1.0, None, 0.0, "sum", True)[4]
    exact = features.double().log_softmax(1)
    flushed = log_q[:, 1] == 0
    assert (x[flushed] > 87).all()
    assert flushed[x > 104].all()
    error = (log_q.double() - exact).abs() / exact.abs().clamp(min=1)
    assert error[~flushed].max() <= 2 * torch.finfo(torch.float32).eps


@every_capability
def test_bitwise_the_same_from_run_to_run(capability, threads):
    b = uniform((64,), 5, 40, 300).to(torch.float32)
    for number in (1, 2, 3):
        threads(number)
        for loss in (COMPLEXITY[-1], MATCHING[0]):
            features = b if not loss.matching else uniform((*loss.row[:-1], 33), 5, 30, 30).to(torch.float32)
            first, again = (differentiate(loss.of(features, "cpp"), features.syn) for _ in range(2))
            assert torch.equal(first[0], again[0])
            assert torch.equal(first[1], again[1])


def test_an_instruction_set_that_is_not_there_is_refused():
    listed = ", ".join(CAPABILITIES)
    with pytest.raises(ValueError, match=f"must be one that this machine has, {listed}, got 'avx1024'"):
        native.module.set_capability("avx1024")
    code = "import ddfast.operators.backends as b; print(b.absent['cpp'])"
    environment = {**os.environ, "DDFAST_CAPABILITY": "avx1024"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "ddfast._C does not load: the instruction set must be one that" in done.stdout


def test_build_info():
    info = native.module.build_info()
    assert list(info) == ["compiler", "flags", "architecture", "instruction sets", "in use", "commit"]
    assert info["in use"] in CAPABILITIES
    assert set(CAPABILITIES) <= set(info["instruction sets"].split())


# Work of any size and cut


@pytest.mark.parametrize(("classes", "rows", "width"), [(1, 700, 5), (2, 300, 33), (5, 300, 17), (3, 50, 3000)])
@pytest.mark.parametrize("number", [1, 2])
def test_classes_of_many_chunks(classes, rows, width, number, threads):
    """One large class cut up, and classes that are and are not kept in cache."""
    threads(number)
    for loss in COMPLEXITY:
        b = uniform((width,), classes, 1, rows)
        b = replace(b, syn=b.syn * (9 / width) ** 0.5)
        value, gradient = differentiate(loss.of(b, "cpp"), b.syn)
        expected, expected_gradient = loss.expected(b)
        assert_close(value, expected)
        assert_close(gradient, expected_gradient)


def zero_pages(elements):
    """bfloat16 zeros of memory that is committed where it is written; PyTorch's own zeros are written."""
    return torch.from_numpy(numpy.zeros(elements, numpy.int16)).view(torch.bfloat16)


@pytest.mark.full
def test_more_than_2_31_elements():
    """All rows but the last are equal, so that the loss and its gradient are those of the last."""
    rows, width = 2**21 + 5, 1024
    features = zero_pages(rows * width).view(rows, width)
    last = torch.randn(3, width).bfloat16()
    features[-3:] = last
    segments = ClassSegments(2, rows, rows - 3, torch.tensor([0, rows - 3, rows]), torch.arange(rows))
    call = partial(DF.class_complexity, backend="cpp", cmi_weight=rows)
    value, gradient = differentiate(partial(call, segments=segments), features)
    expected, expected_gradient = differentiate(partial(DF.class_complexity, cmi_weight=3.0, backend="cpp"), last)
    assert_close(value, expected, 1e-5)
    assert torch.equal(gradient[-3:], expected_gradient)
    assert gradient[:: 2**18].abs().max() == 0


@pytest.mark.full
def test_moments_of_more_than_2_31_elements():
    rows, shape = 2**17 + 7, (64, 256)
    features = zero_pages(rows * shape[0] * shape[1]).view(rows, *shape)
    last = torch.randn(3, *shape).bfloat16()
    features[-3:] = last
    segments = ClassSegments(2, rows, rows - 3, torch.tensor([0, rows - 3, rows]), torch.arange(rows))
    moments, expected = (ClassMoments.from_features(*side, backend="cpp") for side in ((features, segments), (last,)))
    assert_close(moments.means[1], expected.means[0], 1e-6)
    assert_close(moments.covariances[1], expected.covariances[0], 1e-6)
    assert not moments.means[0].any()
    assert not moments.covariances[0].any()


def test_rows_further_apart_than_2_31_elements():
    far = zero_pages(2**32 + 8).as_strided((3, 8), (2**31, 1))
    far.copy_(torch.randn(3, 8))
    for run in (DF.class_complexity, lambda x, backend: DF.moment_matching(x[:2], x, backend=backend)):
        value, gradient = differentiate(partial(run, backend="cpp"), far)
        expected, expected_gradient = differentiate(partial(run, backend="cpp"), far.contiguous())
        assert torch.equal(value, expected)
        assert torch.equal(gradient, expected_gradient)


# Wrong or unusual arguments


def test_overlapping_rows():
    """Windows of one line: each element is in several rows."""
    b = batch((9,))
    windows = b.syn.flatten().as_strided((11, 9), (3, 1))
    for loss in COMPLEXITY:
        value, gradient = differentiate(loss.of(b, "cpp"), windows)
        expected, expected_gradient = differentiate(loss.of(b, "cpp"), windows.contiguous())
        assert torch.equal(value, expected)
        assert torch.equal(gradient, expected_gradient)


F = torch.randn(6, 4)
SIDE = (torch.tensor([0, 2, 6]), torch.arange(6))
WRONG = {
    "dtype": ((F.int(), None, None, 3, 2), "features must be float32, float64, bfloat16 or float16"),
    "shape": ((F[0], None, None, 2, 2), "features must have shape"),
    "rows": ((F, None, None, 4, 2), "features must have 8 rows, got 6"),
    "offsets alone": ((F, SIDE[0], None, 3, 2), "offsets and index must be given together"),
    "too few offsets": ((F, *SIDE, 3, 3), "offsets must be contiguous int64 of shape"),
    "integers of 32 bits": ((F, SIDE[0].int(), SIDE[1], 3, 2), "offsets must be contiguous int64"),
    "offsets that fall": ((F, SIDE[0].flip(0), SIDE[1], 3, 2), "offsets must rise from 0 to the 6 rows"),
    "rows that are not there": ((F, SIDE[0], SIDE[1] + 1, 3, 2), "index must hold rows of the 6"),
}


@pytest.mark.parametrize(("side", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_of_the_operator_itself(side, message):
    """Whoever calls it past the public functions gets an error, and no other memory."""
    with pytest.raises(RuntimeError, match=message):
        torch.ops.ddfast.class_complexity.cpp(*side, 1.0, 1.0, None, 0.0, "sum", False)


def test_tensors_elsewhere_have_no_kernel():
    with pytest.raises(NotImplementedError):
        torch.ops.ddfast.class_complexity.cpp(F.to_sparse(), None, None, 3, 2, 1.0, 1.0, None, 0.0, "sum", False)


# Processes and threads


def test_many_python_threads():
    losses = [(loss, b) for loss in COMPLEXITY + MATCHING for b in [batch(loss.row).to(torch.float32)]]

    def run(number):
        loss, b = losses[number % len(losses)]
        return differentiate(loss.of(b, "cpp"), b.syn)

    expected = [run(number) for number in range(len(losses))]
    with ThreadPoolExecutor(8) as pool:
        for number, (value, gradient) in enumerate(pool.map(run, range(6 * len(losses)))):
            assert torch.equal(value, expected[number % len(losses)][0])
            assert torch.equal(gradient, expected[number % len(losses)][1])


def test_a_forked_child_of_one_thread():
    """PyTorch's own threads do not survive a fork, so the parent must not have started any."""
    code = """
import os, torch, ddfast.functional as DF
torch.set_num_threads(1)
features = torch.randn(300, 700)
expected = DF.class_complexity(features, backend="cpp")
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(DF.class_complexity(features, backend="cpp"), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The binary


def symbols(*arguments):
    done = subprocess.run([*arguments, native.module.__file__], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_nothing_of_pytorch_but_its_stable_abi_is_used():
    undefined = [line.split()[-1] for line in symbols("nm", "-D", "--undefined-only").splitlines()]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert [name for name in undefined if re.match(r"_ZT?[A-Z]?K?N?K?(2at|3c10|5torch)", name)] == []


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")
def test_wide_registers_are_used_in_their_own_namespace_alone():
    """A function that the linker took from the object of another instruction set would run where it cannot."""
    function, strays, seen = "", set(), set()
    for line in symbols("objdump", "-dC", "--no-show-raw-insn").splitlines():
        if line.endswith(">:"):
            function = line.split(" ", 1)[1]
        elif "%tmm" in line or "ldtilecfg" in line or "tilerelease" in line:
            (seen if "ddfast::amx::" in function else strays).add(function)
        elif "%zmm" in line or "%k1" in line:
            (seen if re.search("ddfast::(avx512|amx)::", function) else strays).add(function)
        elif "%ymm" in line and not re.search("ddfast::(avx|amx)", function):
            strays.add(function)
    assert strays == set()
    assert seen or CAPABILITIES == ["portable"]


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs GCC and its sanitizers")
@pytest.mark.parametrize("kind", ["thread", "address"])
def test_sanitizers_find_nothing(kind):
    """Racing threads; memory out of bounds, undefined behaviour and leaks in the quick tests."""
    script = Path(__file__).parents[1] / "csrc" / "sanitize" / "run"
    done = subprocess.run([script, kind], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
