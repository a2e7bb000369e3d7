"""What is the Triton kernels' own: tiles of any shape, classes that several programs share, and how work is cut."""

from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    COMPLEXITY,
    assert_accurate,
    assert_close,
    batch,
    differentiate,
    many,
    ragged,
    runnable,
    uniform,
)

import ddfast.functional as DF
from benchmarks.workloads import WORKLOADS
from ddfast.kernels.complexity_rows import cells_of, classes_of, columns_of, log, rows_of
from ddfast.kernels.complexity_tiling import LARGE, Cut, class_cut
from ddfast.kernels.tiling import Chip, power_of_two
from ddfast.operators import triton_complexity
from ddfast.operators.launch import forget

pytestmark = pytest.mark.usefixtures("poisoned")
NAMED = {loss.name: loss for loss in COMPLEXITY}
FUSED = [NAMED[name] for name in ("cx", "cx-exponential", "cmi-none")]
DEVICE = next((device for backend, device in runnable("class_complexity") if backend == "triton"), None)
on_triton = pytest.mark.skipif(DEVICE is None, reason="triton needs a GPU, or TRITON_INTERPRET=1")
each_loss = pytest.mark.parametrize("loss", FUSED, ids=lambda loss: loss.name)


def run(b, loss, dtype=torch.float64):
    b = b.to(dtype).to(DEVICE)
    return differentiate(loss.of(b, "triton"), b.syn)


def check(b, loss, dtype=torch.float64):
    """Value and gradient against the definition, by the rule of every operator."""
    exact, eager = loss.expected(b.to(dtype).exact()), loss.expected(b.to(dtype))
    for triple in zip(run(b, loss, dtype), eager, exact, strict=True):
        assert_accurate([triple], dtype, "triton")


@pytest.fixture(scope="module")
def cut():
    """Sets the shape of the tiles and the programs of a class."""
    with pytest.MonkeyPatch.context() as patch:

        def force(classes, rows, splits):
            def chosen(num_classes, largest, width, float64, chip):
                columns = power_of_two(width)
                options = {"CLASSES": classes, "ROWS": rows, "WIDTH": columns, "FULL": columns == width, "num_warps": 1}
                return Cut((-(-num_classes // classes), splits), options)

            patch.setattr(triton_complexity, "class_cut", chosen)
            forget()  # the plans of another cut

        yield force


@on_triton
@many
@given(
    sides=ragged(),
    width=st.integers(1, 9),
    shape=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 5)),
    loss=st.sampled_from(FUSED),
)
def test_any_tile_and_any_number_of_programs(cut, sides, width, shape, loss):
    """Programs may have no row of a class, and classes no row at all."""
    _, labels, classes, seed = sides
    cut(*shape)
    check(batch((width,), [], labels, classes, seed=seed), loss)


@on_triton
@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_programs_that_share_a_class_are_accurate(cut, loss, dtype):
    """With a mean far above the spread as well, where the sums of all programs are about the same pivot."""
    cut(1, 4, 3)
    check(uniform((33,), 2, 1, 29), loss, dtype)
    check(batch((33,), [], [0] * 29 + [2] * 3, 3, mean=1e3, spread=0.3), loss, torch.float32)


@on_triton
@each_loss
def test_programs_that_share_a_class_give_the_same_bits_again(cut, loss):
    cut(2, 4, 3)
    b = batch((33,), [], [0] * 29 + [2] * 13, 3)
    assert all(torch.equal(one, other) for one, other in zip(*(run(b, loss, torch.float32) for _ in "12"), strict=True))


@on_triton
@pytest.mark.parametrize("weights", [(0.7, 0.0), (0.0, 0.7)], ids=["centralization", "cmi"])
@pytest.mark.parametrize("alpha", [None, 0.05], ids=["released", "exponential"])
def test_programs_that_share_a_class_calculate_one_term_alone(cut, weights, alpha):
    b = batch((9,)).to(DEVICE)
    options = dict(zip(("centralization_weight", "cmi_weight"), weights, strict=True), alpha=alpha)
    call = partial(DF.class_complexity, segments=b.segments, **options)
    cut(1, 2, 3)
    for one, other in zip(*(differentiate(partial(call, backend=it), b.syn) for it in ("triton", None)), strict=True):
        assert_close(one, other)


@on_triton
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("alpha", [None, 0.05], ids=["released", "exponential"])
def test_states_are_those_of_the_reference(cut, alpha, splits):
    """Of empty classes as well, which no gradient shows."""
    cut(2, 2, splits)
    b = batch((9,)).to(DEVICE)
    side = (b.segments.offsets, b.segments.index, b.segments.largest, b.num_classes)
    operator = torch.ops.ddfast.class_complexity
    ours, expected = (
        run(b.syn, *side, 0.3, 2.0, alpha, 0.0, "batchmean", True) for run in (operator.triton, operator.reference)
    )
    for one, other in zip(ours, expected, strict=True):
        assert_close(one, other)


@on_triton
@pytest.mark.parametrize("splits", [1, 3])
def test_nan_survives_the_threshold(cut, splits):
    """... of the exponential form, with no other term to bring it into the loss."""
    cut(1, 2, splits)
    features = torch.randn(8, 5, device=DEVICE)
    features[6, 3] = torch.nan
    assert DF.class_centralization(features, alpha=0.05, beta=1.3, backend="triton").isnan()


@pytest.fixture
def chip(monkeypatch):
    """Lets the work be cut as for another chip."""
    return lambda multiprocessors: monkeypatch.setattr(
        triton_complexity, "chip_of", lambda device: Chip(90, multiprocessors)
    )


@on_triton
@pytest.mark.parametrize("width", [1, 31, 511, 512, 513, 2048, 4096, 8192])
@pytest.mark.parametrize("loss", FUSED[:2], ids=lambda loss: loss.name)
def test_widths_around_the_edges_of_tiles(width, loss):
    b = batch((width,), [], [0, 1, 0, 0, 2, 0], 3, spread=(9 / width) ** 0.5)
    check(b, loss)
    check(b, loss, torch.float32)


@on_triton
@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("loss", FUSED[:2], ids=lambda loss: loss.name)
def test_classes_larger_than_a_tile(chip, multiprocessors, loss):
    chip(multiprocessors)
    splits = class_cut(2, 67, 513, False, Chip(90, multiprocessors)).grid[1]
    assert (splits > 1) == (multiprocessors > 1)
    check(batch((513,), [], [1] * 5 + [0] * 67, 2, spread=0.1), loss, torch.float32)


@on_triton
@pytest.mark.parametrize("splits", [1, 3])
def test_nearly_uniform_softmax_is_accurate(cut, splits):
    """A KL of about 1e-4, in which errors of the logarithm that all go to one side would show."""
    cut(1, 4, splits)
    check(batch((512,), [], [0] * 20, 1, spread=0.014), NAMED["cx"], torch.float32)


@on_triton
def test_a_class_of_hundreds_of_steps_is_summed_as_accurately_as_eager_sums_it(cut):
    cut(1, 1, 1)
    check(batch((16,), [], [0] * 400, 1, spread=0.014), NAMED["cx"], torch.float32)


@triton.jit
def logarithms(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, log(tl.load(x + at)))


@on_triton
def test_the_logarithm_is_within_one_unit_in_the_last_place():
    """Of every order of magnitude that a probability has, and close to 1; and 0·log 0 is 0."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.exp(-87 * torch.rand(2**15, generator=generator))
    x = torch.cat([spread, 1 - 0.02 * torch.rand(2**15, generator=generator)]).to(DEVICE)
    out = torch.empty_like(x)
    logarithms[1,](x, out, len(x))
    exact = x.double().log()
    unit = torch.nextafter(exact.abs().float(), torch.tensor(torch.inf, device=DEVICE)).double() - exact.abs().float()
    assert ((out - exact).abs() <= unit.clamp(min=1e-38)).all()
    logarithms[1,](torch.zeros_like(x), out, len(x))
    assert out.isfinite().all()


class Recorder:
    """Stands for a kernel and notes its name instead of launching it."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        return lambda *args, **options: self.launched.append(self.name)


@pytest.mark.parametrize("alpha", [None, 0.05], ids=["released", "exponential"])
@pytest.mark.parametrize("name", list(WORKLOADS))
def test_a_forward_has_two_launches(monkeypatch, chip, name, alpha):
    """At every standard workload, whether programs share its classes or not."""
    chip(132)
    monkeypatch.setattr(triton_complexity, "class_cut", class_cut)  # whatever `cut` has forced before
    launched = []
    for kernel in ("class_sums", "class_terms", "totals"):
        monkeypatch.setattr(triton_complexity, kernel, Recorder(kernel, launched))
    workload = WORKLOADS[name]
    rows = torch.empty(workload.classes * workload.ipc, workload.width, device="meta")
    side = (None, None, workload.ipc, workload.classes)
    triton_complexity.class_complexity(rows, *side, 0.05, 1.0, alpha, 0.0, "batchmean", True)
    shared = name == "c10-ipc1000"
    assert launched == (["class_sums", "class_terms"] if shared else ["class_terms", "totals"])


@triton.jit
def addresses(out, largest, classes, row_stride, column_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    _, _, first, _, start, stop, _ = classes_of(None, largest, classes, 1, 1, ROWS)
    columns, _ = columns_of(WIDTH, WIDTH, True)
    rows, _ = rows_of(first, start, 0, stop, None, ROWS)
    cells = cells_of(rows, columns, (row_stride, column_stride))
    tl.store(out + tl.program_id(0) * ROWS * WIDTH + tl.arange(0, ROWS * WIDTH), tl.reshape(cells, (ROWS * WIDTH,)))


@on_triton
@pytest.mark.parametrize(("row_stride", "column_stride"), [(2**30, 1), (1, 2**30), (2**33, 3)])
def test_addresses_need_more_than_32_bits(row_stride, column_stride):
    classes, rows, width = 3, 4, 8
    out = torch.zeros(classes * rows, width, dtype=torch.int64, device=DEVICE)
    addresses[classes,](out, rows, classes, row_stride, column_stride, rows, width)
    n, e = torch.meshgrid(torch.arange(classes * rows), torch.arange(width), indexing="ij")
    assert torch.equal(out.cpu(), n * row_stride + e * column_stride)


@given(
    classes=st.integers(1, 2000),
    largest=st.integers(0, 100_000),
    width=st.integers(0, 20_000),
    float64=st.booleans(),
    multiprocessors=st.integers(1, 200),
)
def test_a_cut_covers_classes_and_features(classes, largest, width, float64, multiprocessors):
    programs, options = class_cut(classes, largest, width, float64, Chip(90, multiprocessors))
    shape = [options[name] for name in ("CLASSES", "ROWS", "WIDTH")]
    assert programs[0] * shape[0] >= classes > (programs[0] - 1) * shape[0]
    assert shape[2] >= width
    assert options["FULL"] == (shape[2] == width)
    assert all(it == power_of_two(it) for it in (*shape, options["num_warps"]))
    assert shape[0] * shape[1] * shape[2] <= max(LARGE, shape[2])
    assert 1 <= programs[1] <= max(1, largest)
    assert programs[1] == 1 or programs[0] * programs[1] <= multiprocessors


def test_few_large_classes_fill_a_chip_and_many_small_ones_share_programs():
    chip = Chip(90, 132)
    assert class_cut(10, 1000, 512, False, chip).grid == (10, 13)
    assert class_cut(200, 50, 2048, False, chip).grid == (200, 1)
    assert class_cut(1000, 3, 9, False, chip).grid[0] < 132
    assert class_cut(1, 10**6, 512, False, chip).grid[1] == 64
