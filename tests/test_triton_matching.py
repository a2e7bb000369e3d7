"""What is the Triton kernels' own: how work is cut, and how accurate split products are, which no interpreter shows."""

import itertools
import json

import pytest
import torch
import triton
import triton.language as tl
from oracle import (
    INTERPRETED,
    MATCHING,
    assert_accurate,
    assert_close,
    batch,
    differentiate,
    frobenius,
    runnable,
    uniform,
)

from benchmarks import tune
from benchmarks.clock import HostClock
from benchmarks.workloads import WORKLOADS
from ddfast import ClassMoments
from ddfast.kernels import tables, tiling
from ddfast.kernels.matching import total_squares
from ddfast.kernels.moments import round_to_tf32, triangle
from ddfast.operators import triton_matching

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.operators("moment_matching", "moment_matching_backward")]
MM, ROWS = (next(loss for loss in MATCHING if loss.name == name) for name in ("mm", "mm-rows"))
DEVICE = next((device for backend, device in runnable("moment_matching") if backend == "triton"), None)
on_triton = pytest.mark.skipif(DEVICE is None, reason="triton needs a GPU, or TRITON_INTERPRET=1")


def check(b, loss=MM, dtype=torch.float32):
    """Value and gradient against the definition, by the rule of every operator."""
    exact = loss.expected(b.to(dtype).exact())
    eager = loss.expected(b.to(dtype))
    actual = differentiate(loss.of(b.to(dtype).to(DEVICE), "triton"), b.syn.to(dtype).to(DEVICE))
    for triple in zip(actual, eager, exact, strict=True):
        assert_accurate([triple], dtype, "triton")


@pytest.fixture
def chip(monkeypatch):
    """Lets the work be cut as for another chip."""

    def pretend(arch, multiprocessors):
        monkeypatch.setattr(triton_matching, "chip_of", lambda device: tiling.Chip(arch, multiprocessors))

    return pretend


@on_triton
@pytest.mark.parametrize("labels", ["ragged", "uniform"])
def test_rows_of_a_class_are_shared_by_programs(chip, labels):
    """... so that partials are added up, of which some belong to classes with fewer rows and are empty."""
    chip(90, 500)
    b = batch((5, 3, 3), [0] * 17 + [1] * 2 + [3] * 9, [0] * 6 + [1] + [2] * 4 + [3] * 13, 4)
    b = b if labels == "ragged" else uniform((5, 3, 3), 2, 19, 7)
    assert tiling.rows_of_a_program((17, 13), 4, tiling.Chip(90, 500)) < 10
    check(b)
    check(b, dtype=torch.float64)


@on_triton
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    "row",
    [(130, 3), (65, 2, 2), (33, 1), (128, 4, 4), (16, 40), (1, 5), (200,)],
    ids=lambda row: "x".join(map(str, row)),
)
def test_shapes_around_the_edges_of_tiles(chip, arch, row):
    chip(arch, 4)
    check(batch(row, [0, 1] * 5, [1, 0, 1, 0, 1], 2))


@on_triton
def test_many_tiles_of_the_upper_triangle(chip):
    chip(90, 4)
    check(batch((30, 7, 3), [0] * 5, [0] * 3, 1), ROWS)
    check(batch((30, 4, 3), [0] * 5, [0] * 3, 1), ROWS, torch.float64)


@on_triton
def test_sides_of_different_memory_formats():
    """One launch reads both sides only where their inner strides are the same."""
    b = batch((6, 3, 4)).to(torch.float32)
    expected = differentiate(MM.of(b.to(DEVICE), "triton"), b.syn.to(DEVICE))
    last = b.real.to(memory_format=torch.channels_last).to(DEVICE)
    sides = b.real_segments.to(DEVICE), b.segments.to(DEVICE)
    for syn in (b.syn, b.syn.to(memory_format=torch.channels_last)):
        value, gradient = differentiate(lambda syn: MM.function(last, syn, *sides, backend="triton"), syn.to(DEVICE))
        assert_close(value, expected[0].cpu().double(), 1e-6)
        assert_close(gradient, expected[1].cpu().double(), 1e-6)
        assert gradient.stride() == syn.stride()


@on_triton
def test_two_runs_are_equal_bit_for_bit(chip):
    chip(90, 500)
    b = batch((9, 5), [0] * 17 + [1] * 5, [0] * 6 + [1] * 9, 2).to(torch.float32)
    runs = [differentiate(MM.of(b.to(DEVICE), "triton"), b.syn.to(DEVICE)) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def tf32(x):
    """To the nearest with 10 bits of mantissa, as `round_to_tf32`."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def test_split_products_have_float32_accuracy():
    """The interpreter multiplies in float32 whatever is asked for; so the splitting is followed here step by step."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(64, 4096, generator=generator) * torch.logspace(-3, 3, 64)[:, None]
    exact = y.double() @ y.double().T
    hi = tf32(y)
    lo = tf32(y - hi)
    assert torch.equal(hi, tf32(hi))
    assert (y - hi).abs().max() <= y.abs().max() * 2**-11
    big, small = (hi.double() @ part.double().T for part in (hi, lo))
    scale = exact.diag().sqrt()
    error = ((big + small + small.T - exact) / (scale[:, None] * scale)).abs().max()
    assert error < 2**-21  # lo·lo^T is left out
    assert ((big - exact) / (scale[:, None] * scale)).abs().max() > 2**-16  # one product would not do
    assert frobenius(big + small + small.T, exact) < 1e-6


@triton.jit
def helpers_kernel(x, out, pairs):
    at = tl.arange(0, 128)
    tl.store(out + at, round_to_tf32(tl.load(x + at)))
    for t in range(136):
        i, j = triangle(t)
        tl.store(pairs + 2 * t, i)
        tl.store(pairs + 2 * t + 1, j)


@pytest.mark.skipif(not INTERPRETED, reason="tested in the interpreter")
def test_rounding_in_the_kernel_is_the_one_followed_above():
    x = torch.randn(128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 128)
    out, pairs = torch.empty(128), torch.zeros(136, 2, dtype=torch.int32)
    helpers_kernel[(1,)](x, out, pairs)
    assert torch.equal(out, tf32(x))
    assert [tuple(pair) for pair in pairs.tolist()] == [(i, j) for j in range(16) for i in range(j + 1)]


@pytest.mark.skipif(not INTERPRETED, reason="tested in the interpreter")
def test_rounding_keeps_every_nan_and_both_infinities():
    payloads = [0x7FFFFFFF, 0x7FFFF000, 0x7FC00000, 0x7F800001, 0x7F801000, 0x7FBFFFFF]  # the first is a GPU's own
    bits = [sign | payload for payload in payloads for sign in (0, 0x80000000)]
    nan = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    finite = torch.tensor([0.0, -0.0, 1.0, -(2.0**-149), 3e38, torch.inf, -torch.inf])
    x = torch.cat([nan, finite]).repeat(7)[:128].contiguous()
    out, pairs = torch.empty(128), torch.zeros(136, 2, dtype=torch.int32)
    helpers_kernel[(1,)](x, out, pairs)
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out[~x.isnan()], tf32(x)[~x.isnan()])
    assert torch.equal(out.isinf(), x.isinf())


@on_triton
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, 0x7FFFF123])
def test_nan_of_any_payload_in_a_row_gives_nan(bits):
    b = batch((20, 3), [0] * 5 + [1] * 5, [0, 1, 0, 1], 2).to(torch.float32)
    b.syn.view(torch.int32)[2, 4, 1] = bits
    value, gradient = differentiate(MM.of(b.to(DEVICE), "triton"), b.syn.to(DEVICE))
    assert value.isnan()
    assert gradient[::2].isnan().any()
    assert not gradient[1::2].isnan().any()


def test_a_divisor_is_named_only_where_triton_does_not_see_it():
    assert [tiling.divisor(*sizes) for sizes in [(16, 32), (8, 64), (36, 144), (49,), (1, 8), (48, 16, 8)]] == [
        *(1, 8, 4, 1, 1, 8)
    ]


def test_what_was_measured_on_a_gpu_is_used_there(tmp_path, monkeypatch):
    row = {
        "kernel": "moments",
        "d": 128,
        "p": 16,
        "precision": "float32",
        "block": 64,
        "step": 16,
        "warps": 4,
        "stages": 2,
    }
    far = {**row, "d": 1024, "p": 8, "block": 128}
    (tmp_path / "some-gpu.json").write_text(json.dumps([row, far]))
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    here, elsewhere = tiling.Chip(90, 132, "some-gpu"), tiling.Chip(90, 132, "another-gpu")
    assert tiling.moments_tiling(128, 16, "float32", here) == tiling.Tiling(64, 1, 16, 4, 2)
    assert tiling.moments_tiling(128, 4, "float32", here) == tiling.Tiling(64, 4, 4, 4, 2)  # the nearest shape
    assert tiling.moments_tiling(512, 8, "float32", here).block == 128
    for other in ((128, 1, "float32", here), (128, 16, "tf32", here), (128, 16, "float32", elsewhere)):
        assert tables.measured("moments", *other[:3], other[3].name) is None
    assert tiling.backward_tiling(128, 16, "float32", here) == tiling.backward_tiling(128, 16, "float32", elsewhere)


@on_triton
def test_tuning_keeps_the_fastest_of_what_is_right(monkeypatch):
    workload = WORKLOADS["c10-ipc10"].at("quick")
    cuts = [tables.Cut(16, 16, 4, 2), tables.Cut(32, 32, 4, 2), tables.Cut(7, 5, 4, 2)]  # no power of two: refused
    times = itertools.chain([3.0, 2.0, 1.0], itertools.repeat(0.0))
    monkeypatch.setattr(HostClock, "fastest", lambda *_: next(times))
    (row,) = tune.tune(workload, "float32", torch.device(DEVICE), {"moments": cuts})
    assert row == {"kernel": "moments", "d": 4, "p": 16, "precision": "float32", **cuts[1]._asdict()}


@triton.jit
def total_kernel(squares, total, count, BLOCK: tl.constexpr):
    tl.store(total, total_squares(squares, count, BLOCK, tl.float64))


@on_triton
def test_the_total_is_the_sum_of_all_squares():
    squares = torch.rand(3001, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE)
    total = squares.new_empty(())
    total_kernel[(1,)](squares, total, len(squares), BLOCK=1024)
    assert_close(total, squares.sum())


@on_triton
@pytest.mark.parametrize("loss", [MM, ROWS], ids=["mm", "mm-rows"])
def test_the_last_program_adds_up_what_all_have_compared(chip, loss, monkeypatch):
    """... and leaves the ticket as it was, so that a launch can be repeated; SQUARES are fewer than there are."""
    monkeypatch.setattr(tiling, "SQUARES", 4)
    tickets = []
    partials = triton_matching.partials_of

    def kept(*args, **options):
        found = partials(*args, **options)
        tickets.append(found.ticket)
        return found

    monkeypatch.setattr(triton_matching, "partials_of", kept)
    chip(80, 4)
    check(batch((30, 4, 3), [0, 1, 2] * 3, [2, 1, 0, 1, 0], 3), loss, torch.float64)
    assert [ticket.item() for ticket in tickets] == [0]


@on_triton
def test_means_keep_what_rounding_took_off_them():
    """At mean/spread 1e3 float32 means are off by 6e-5 of the spread, and their difference with them."""
    b = batch((6, 4), mean=1e3).to(torch.float32)
    dm = next(loss for loss in MATCHING if loss.name == "dm")
    value, gradient = differentiate(dm.of(b.to(DEVICE), "triton"), b.syn.to(DEVICE))
    exact, exact_gradient = dm.expected(b.exact())
    assert frobenius(value, exact) < 1e-6
    assert frobenius(gradient, exact_gradient) < 1e-6


def test_work_is_cut_to_fill_the_chip():
    h100 = tiling.Chip(90, 132)
    assert tiling.rows_of_a_program((256, 10), 10, h100) < 64  # 10 classes for 132 multiprocessors
    assert tiling.rows_of_a_program((256, 50), 2000, h100) == 256
    for sides, programs in itertools.product([(256, 10), (1, 1), (0, 3), (5000, 1000)], [1, 10, 1000]):
        assert 1 <= tiling.rows_of_a_program(sides, programs, h100) <= max(sides)


@on_triton
def test_moments_of_a_class_in_parts_are_those_of_the_whole(chip):
    b = batch((7, 4), [0] * 23 + [2] * 3, [0], 3).to(torch.float32)
    exact = ClassMoments.from_features(b.real.double(), b.real_segments)
    for multiprocessors in (1, 500):
        chip(90, multiprocessors)
        moments = ClassMoments.from_features(b.real.to(DEVICE), b.real_segments.to(DEVICE), backend="triton")
        assert frobenius(moments.means, exact.means) < 1e-6
        assert frobenius(moments.covariances, exact.covariances) < 1e-6
