"""The moments kernel for Hopper: on threads of the CPU everywhere, and as it is where a Hopper GPU is."""

import ctypes
import shutil
import subprocess
from ctypes import POINTER, Structure, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracle import INTERPRETED, frobenius
from torch import Tensor

from benchmarks import splits

ROOT = Path(__file__).parents[1]
CHANNELS, POSITIONS = 128, 16
HOPPER = (
    torch.cuda.is_available()
    and torch.cuda.get_device_capability()[0] == 9
    and hasattr(torch.ops.ddfast, "moments_partials")
)


class Rows(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("features", "offsets", "index")),
        *((name, c_int64) for name in ("largest", "rows", "splits", "stride")),
    ]


class Moments(Structure):
    _fields_ = [
        ("real", Rows),
        ("syn", Rows),
        *((name, c_void_p) for name in ("sums", "products", "ticket")),
        ("classes", c_int64),
    ]


class Part(NamedTuple):
    """Features (N, 1, C, P) of one side by class, `rows` of a class to a program."""

    features: Tensor
    rows: int
    largest: int
    offsets: Tensor | None = None
    index: Tensor | None = None

    @property
    def splits(self) -> int:
        return -(-self.largest // self.rows)

    def members(self, k: int) -> Tensor:
        """The rows of class k (n, C, P)."""
        x = self.features[:, 0]
        if self.offsets is None:
            return x[k * self.largest : (k + 1) * self.largest]
        return x[self.index[self.offsets[k] : self.offsets[k + 1]]]

    def on(self, device: str) -> "Part":
        return self._replace(
            **{name: value.to(device) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        )


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("emulated") / "hopper.so"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, ROOT / "tests" / "emulated_hopper.cpp", "-o", library], check=True)
    run = ctypes.CDLL(str(library)).run_moments
    run.argtypes = [POINTER(Moments)]

    def described(part: Part) -> Rows:
        address = [None if t is None else t.data_ptr() for t in (part.features, part.offsets, part.index)]
        return Rows(*address, part.largest, part.rows, part.splits, part.features.stride(0))

    def partials(real: Part, syn: Part, classes: int) -> tuple[Tensor, Tensor]:
        sums, products, ticket = outputs(real, syn, classes, "cpu")
        call = Moments(described(real), described(syn), *(t.data_ptr() for t in (sums, products, ticket)), classes)
        run(ctypes.byref(call))
        assert ticket.item() == 0
        return sums, products

    return partials


def outputs(real: Part, syn: Part, classes: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    splits = real.splits + syn.splits
    sums = torch.full((splits, classes, CHANNELS, POSITIONS), torch.nan, device=device)
    products = torch.full((splits, classes, 1, CHANNELS, CHANNELS), torch.nan, device=device)
    return sums, products, torch.ones(1, dtype=torch.int32, device=device)


def on_the_card(real: Part, syn: Part, classes: int) -> tuple[Tensor, Tensor]:
    sums, products, ticket = outputs(real, syn, classes, "cuda")
    sides = [
        argument
        for part in (real.on("cuda"), syn.on("cuda"))
        for argument in (part.features, part.offsets, part.index, part.largest, part.rows, part.splits)
    ]
    torch.ops.ddfast.moments_partials(*sides, sums, products, ticket)
    assert ticket.item() == 0
    return sums.cpu(), products.cpu()


on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0 and ddfast._C_cuda")


@pytest.fixture(params=["emulated", pytest.param("card", marks=on_hopper)])
def kernel(request):
    return on_the_card if request.param == "card" else request.getfixturevalue("emulator")


def features(rows: int, mean: float = 1.0, spread: float = 1.0, seed: int = 0) -> Tensor:
    """Rows (rows, 1, C, P) as after a ReLU, at `mean` spreads from zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, CHANNELS, POSITIONS, generator=generator, dtype=torch.float64)
    return ((x + mean).clamp(min=0) * spread).float()


def exact(part: Part, k: int, split: int) -> tuple[Tensor, Tensor]:
    """Sums (C, P) and products (C, C) of a program's rows about the pivot, in float64."""
    rows = part.members(k).double()
    y = rows[split * part.rows : (split + 1) * part.rows] - rows[:1].expand(min(len(rows), 1), -1, -1).sum(0)
    return y.sum(0), torch.einsum("ncp,nep->ce", y, y)


def stored(products: Tensor) -> Tensor:
    """What merge reads, of (C, C): the parts on and above the diagonal; the others as their mirror images."""
    part = torch.arange(CHANNELS) // 32
    kept = part[:, None] <= part[None, :]
    assert products[~kept].isnan().all()
    return torch.where(kept, products, products.T)


def check(kernel, real: Part, syn: Part, classes: int, tolerance: float = 1e-6) -> None:
    sums, products = kernel(real, syn, classes)
    for number, (part, split) in enumerate((it, split) for it in (real, syn) for split in range(it.splits)):
        for k in range(classes):
            of_sums, of_products = exact(part, k, split)
            where = f"class {k}, split {number}"
            assert frobenius(sums[number, k], of_sums) < tolerance or not of_sums.any(), where
            error = (stored(products[number, k, 0]).double() - of_products).norm()
            assert error <= tolerance * of_products.norm(), where


def test_partials_of_equal_classes_are_the_sums_over_their_rows(kernel):
    """Two classes; 39 rows are more steps than there are stages and no whole steps; 20 rows are two splits."""
    check(kernel, Part(features(78), 39, 39), Part(features(40, seed=1), 13, 20), 2)


def test_sums_of_many_rows_are_not_truncated(kernel):
    """One accumulator for all 160 rows would lose 2e-5."""
    check(kernel, Part(features(160), 160, 160), Part(features(4, seed=1), 4, 4), 1)


def test_ragged_classes_are_gathered_and_empty_ones_are_zero(kernel):
    generator = torch.Generator().manual_seed(0)
    real = Part(features(24), 7, 17, torch.tensor([0, 17, 17, 18, 24]), torch.randperm(24, generator=generator))
    syn = Part(features(9, seed=1), 5, 6, torch.tensor([0, 0, 6, 7, 9]), torch.randperm(9, generator=generator))
    check(kernel, real, syn, 4)


@pytest.mark.parametrize("mean", [10.0, 1e3])
def test_a_mean_far_from_zero_costs_no_digits(kernel, mean):
    check(kernel, Part(features(24, mean), 24, 24), Part(features(4, mean, seed=1), 4, 4), 1)


@pytest.mark.parametrize("spread", [1e-15, 1e-5, 1e5, 1e15], ids=str)
def test_any_size_of_the_features_fits_into_halves(kernel, spread):
    check(kernel, Part(features(8, spread=spread), 8, 8), Part(features(4, spread=spread, seed=1), 4, 4), 1)


@pytest.mark.parametrize("at", [0, 1, 6, 17])
def test_a_row_that_is_much_larger_makes_the_scale_smaller(kernel, at):
    """Row 0 is the pivot, row 1 in the first step, and row 6 and 17 come when there is a scale."""
    x = features(20)
    x[at] *= 1e4
    check(kernel, Part(x, 20, 20), Part(features(4, seed=1), 4, 4), 1)


def test_rows_equal_to_the_pivot_leave_the_scale_open(kernel):
    x = features(1).repeat(12, 1, 1, 1)
    x[9:] += 1e-3 * features(3, seed=2)
    check(kernel, Part(x, 12, 12), Part(features(4, seed=1), 4, 4), 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_class(kernel, value):
    x = features(16)
    x[3, 0, 5, 7] = value
    real, syn = Part(x, 8, 8), Part(features(4, seed=1), 2, 2)
    sums, products = kernel(real, syn, 2)
    assert not sums[0, 0, 5, 7].isfinite()
    assert sums[0, 0].isfinite().sum() == CHANNELS * POSITIONS - 1
    touched = torch.cat((products[0, 0, 0, 5, 5:], products[0, 0, 0, :5, 5]))
    assert not touched.isfinite().any()
    assert products[0, 0, 0, 0, 6:].isfinite().all()
    assert frobenius(stored(products[0, 1, 0]), exact(real, 1, 0)[1]) < 1e-6


def test_the_same_rows_give_the_same_bits(kernel):
    real, syn = Part(features(18), 9, 9), Part(features(6, seed=1), 3, 3)
    first, second = kernel(real, syn, 2), kernel(real, syn, 2)
    assert all(a.nan_to_num(7).equal(b.nan_to_num(7)) for a, b in zip(first, second, strict=True))


def test_half_precision_splits_are_as_accurate_as_those_of_tf32():
    by_name = {split.name: split for split in splits.SPLITS}
    x = features(96)[:, 0].numpy()
    exact = splits.sigma(x, None, 0)

    def error(name: str) -> float:
        return np.linalg.norm(splits.sigma(x, by_name[name], 96) - exact) / np.linalg.norm(exact)

    assert error("fp16") < 1.2 * error("tf32") < 2e-6
    assert error("fp16, a scale a step") < 2e-6
    assert error("fp16, not flushed") > 1e-5


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton on the CPU: TRITON_INTERPRET=1")
@pytest.mark.parametrize("spread", [1e-12, 1.0, 1e12], ids=str)
def test_half_squares_in_triton_are_scaled_by_their_step(spread):
    import triton
    import triton.language as tl

    from benchmarks.hopper import half_square_of_halves

    @triton.jit
    def kernel(y, out, half_square: tl.constexpr):
        row, column = tl.arange(0, 128), tl.arange(0, 32)
        half = half_square(tl.load(y + row[:, None] * 32 + column[None, :]))
        tl.store(out + row[:, None] * 128 + row[None, :], half)

    y = spread * torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    half = torch.empty(128, 128)
    kernel[(1,)](y, half, half_square_of_halves)
    assert frobenius(half + half.T, y.double() @ y.double().T) < 1e-6


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton on the CPU: TRITON_INTERPRET=1")
def test_merge_makes_the_same_losses_of_its_partials_as_of_tritons(emulator, monkeypatch):
    from ddfast.kernels import tiling
    from ddfast.operators import triton_matching
    from ddfast.operators.triton_matching import Side, Terms

    chip, terms = tiling.Chip(90, 4), Terms("features", True, True, True, False)
    monkeypatch.setattr(triton_matching, "chip_of", lambda device: chip)
    monkeypatch.setattr(tiling, "moments_tiling", lambda *_: tiling.Tiling(CHANNELS, 2, POSITIONS, 8, 3))  # one tile
    real, syn, classes = features(22, mean=5.0), features(10, mean=5.1, seed=1), 2
    sides = [Side(side.view(-1, CHANNELS, 1, POSITIONS), None, None, len(side) // classes) for side in (real, syn)]
    partials = triton_matching.partials_of(*sides, classes, terms)
    rows = tiling.rows_of_a_program(tuple(side.largest for side in sides), classes, chip)
    parts = [Part(x, rows, side.largest) for x, side in zip((real, syn), sides, strict=True)]
    expected = triton_matching._match(partials, None, terms, (1.0, 0.01))
    for ours, theirs in zip(emulator(*parts, classes), (partials.sums, partials.products), strict=True):
        assert ours.shape == theirs.shape
        theirs.copy_(ours)
    partials.ticket.zero_()
    for actual, of_triton in zip(triton_matching._match(partials, None, terms, (1.0, 0.01)), expected, strict=True):
        assert frobenius(actual, of_triton) < 1e-5 or of_triton.norm() < 1e-5
