"""The CUDA kernel of covariance matching where there is no GPU: run by threads of the CPU, on Triton's partials."""

import ctypes
import shutil
import subprocess
from ctypes import POINTER, Structure, c_bool, c_double, c_int, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from oracle import INTERPRETED, batch, frobenius

from ddfast import ClassMoments, checks

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(not INTERPRETED, reason="needs Triton's partials on the CPU: TRITON_INTERPRET=1"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


class Side(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("features", "offsets", "index")),
        *((name, c_int64) for name in ("largest", "splits", "first_split")),
        *((f"stride_{name}", c_int64) for name in "nabp"),
        *((name, c_void_p) for name in ("counts", "means", "covariances")),
        ("doubles", c_bool),
    ]


class Matching(Structure):
    _fields_ = [
        ("real", Side),
        ("syn", Side),
        *((name, c_void_p) for name in ("sums", "products")),
        *(
            (name, c_void_p)
            for name in ("share", "centers", "drift", "mean_gap", "covariance_gap", "squares", "ticket")
        ),
        *((name, c_void_p) for name in ("loss", "terms")),
        *((name, c_double) for name in ("mean_weight", "covariance_weight")),
        *((name, c_int64) for name in ("classes", "descriptors", "b", "positions")),
        *((name, c_int) for name in ("tiles", "block", "parts")),
    ]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    library = tmp_path_factory.mktemp("emulated") / "cuda.so"
    source = ROOT / "tests" / "emulated_cuda.cpp"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, source, "-o", library], check=True)
    functions = ctypes.CDLL(str(library))
    functions.match_float.argtypes = functions.match_double.argtypes = [POINTER(Matching)]
    return functions


def address(tensor):
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def described(side, splits, first_split):
    features = side.features
    segments = address(side.offsets), address(side.index), side.largest, splits, first_split
    return Side(address(features), *segments, *features.stride())


def emulated(kernel, partials, moments, weights, outputs):
    """What ddfast::match_partials does, into `outputs`."""
    plan, syn, sums = partials.plan, partials.syn, partials.sums
    real = described(partials.real, plan.real_splits, 0) if partials.real else Side(None)
    if moments:
        real.counts, real.means, real.covariances = map(address, moments)
        real.doubles = moments[1].dtype == torch.float64
    _, k, d, p = sums.shape
    across = -(-d // 32)
    parts = across * (across + 1) // 2 if partials.products is not None else across
    squares, ticket = sums.new_empty(2, k, parts), torch.zeros(1, dtype=torch.int32)
    tiles, block = partials.products.shape[2:4] if partials.products is not None else (0, 0)
    loss, terms, *state = map(address, outputs)
    call = Matching(
        real,
        described(syn, plan.splits, plan.real_splits),
        address(sums),
        address(partials.products),
        *state,
        *map(address, (squares, ticket)),
        *(loss, terms, *weights),
        *(k, d, syn.features.shape[2], p, tiles, block, parts),
    )
    (kernel.match_double if sums.dtype == torch.float64 else kernel.match_float)(ctypes.byref(call))
    assert ticket.item() == 0


slow = pytest.mark.full


@pytest.mark.parametrize(
    "weights",
    [(1.0, 0.01), pytest.param((1.0, 0.0), marks=slow), pytest.param((0.0, 1.0), marks=slow)],
    ids=["both", "mean", "covariance"],
)
@pytest.mark.parametrize("side", ["features", "moments", "float64 moments"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=slow)], ids=["float32", "float64"])
@pytest.mark.parametrize("row", [(70, 3), (4, 3, 19)], ids=str)
def test_equal_to_the_reference(kernel, row, dtype, side, weights):
    from ddfast.operators.triton_matching import Side, Terms, partials_of

    b = batch(row, [2, 0, 1, 1, 0, 2, 0], [1, 3, 0, 1, 0, 0, 3, 0], 4, mean=5.0).to(dtype)
    real_segments, segments = b.real_segments, b.segments
    real, syn = (checks.maps("x", x, "channels") for x in (b.real, b.syn))
    sides = [Side(real, real_segments.offsets, real_segments.index, real_segments.largest), None]
    sides[1] = Side(syn, segments.offsets, segments.index, segments.largest)
    moments = None
    if side != "features":
        wide = b.real.double() if side == "float64 moments" else b.real
        found = ClassMoments.from_features(wide, real_segments, backend="reference")
        moments, sides[0] = (found.counts, found.means, found.covariances), None
    terms = Terms(side.split()[-1], weights[0] != 0, weights[1] != 0, True, False)
    partials = partials_of(*sides, 4, terms, moments)
    assert partials.ticket.item() == 0

    operators = torch.ops.ddfast.moment_matching, torch.ops.ddfast.moment_matching_to_moments
    tail = (syn, segments.offsets, segments.index, segments.largest, 4, *weights, False, True)
    if moments:
        expected = operators[1].reference(*moments, *tail)
    else:
        expected = operators[0].reference(
            real, real_segments.offsets, real_segments.index, real_segments.largest, *tail
        )
    outputs = [torch.full_like(tensor, torch.nan) for tensor in expected]
    emulated(kernel, partials, moments, weights, outputs)
    for name, actual, exact in zip(
        ("loss", "terms", "share", "centers", "drift", "mean_gap", "covariance_gap"), outputs, expected, strict=True
    ):
        if name != "drift":  # which is rounding itself
            assert frobenius(actual, exact) < (1e-12 if dtype == torch.float64 else 2e-6), name
    if weights[1]:
        exact = torch.stack([rows.double().mean(0) for rows in (b.syn[b.labels == 0], b.syn[b.labels == 3])])
        centers, drift = (outputs[3] + outputs[4].double())[[0, 3]], outputs[4]
        assert not drift.isnan().any()
        assert frobenius(centers, exact.reshape(centers.shape)) < 1e-8


@pytest.mark.parametrize("splits", [(1, 3), (4, 5), (7, 9)], ids=str)
def test_partials_of_any_number_of_splits_are_added_in_their_order(kernel, splits):
    """... to the bit: several are read at a time, and a class's sums may not depend on how many."""
    from ddfast.operators.triton_matching import Side, Terms, partials_of

    k, rows, d, p = 2, 3, 4, 5
    generator = torch.Generator().manual_seed(1)
    real, syn = (torch.zeros(k * rows, d, 1, p) for _ in range(2))
    terms = Terms("features", True, True, True, False)
    made = partials_of(Side(real, None, None, rows), Side(syn, None, None, rows), k, terms)
    sums, products = (
        torch.randn(sum(splits), *held.shape[1:], generator=generator) for held in (made.sums, made.products)
    )
    plan = made.plan._replace(real_splits=splits[0], splits=splits[1])
    sizes = ((), (2,), (k,), (k, d, p), (k, d, p), (k, d, p), (k, d, d))
    outputs = [torch.full(size, torch.nan) for size in sizes]
    emulated(kernel, made._replace(plan=plan, sums=sums, products=products), None, (1.0, 0.01), outputs)

    total = torch.zeros(k, d, p)
    for part in sums[splits[0] :]:
        total += part
    assert torch.equal(outputs[3], total * (torch.ones(()) / rows))

    def sigma(sums, products):
        whole, product = sums.double().sum(0), products.double().sum(0)[:, 0, :d, :d]
        return (product - whole @ whole.mT / rows) / rows

    gap = sigma(sums[splits[0] :], products[splits[0] :]) - sigma(sums[: splits[0]], products[: splits[0]])
    assert frobenius(outputs[6], gap) < 2e-6
