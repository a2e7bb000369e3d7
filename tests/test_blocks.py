"""The operators that networks are made of, against the modules whose place they take."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import PRECISIONS, assert_accurate, assert_close, many, runnable
from torch import Tensor
from tracing import Recorder, compiled

from ddfast.operators import conv_block, norm_block
from ddfast.operators.block_schemas import SIGNATURES

NORM = ("norm_block", "norm_block_backward")
CONV = ("conv_block", "conv_block_backward")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
EPS = 1e-5

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.operators(*SIGNATURES)]


def laid(x: Tensor, layout: torch.memory_format) -> Tensor:
    """With the strides of that layout even for one channel, whose elements lie alike in either."""
    return torch.empty_like(x, memory_format=layout).copy_(x)


@dataclass(frozen=True)
class Block:
    """A block with its inputs: of these, all but the kernel get a gradient, or for `conv` the first alone."""

    name: str
    relu: bool = True
    pool: bool = False
    residual: bool = False
    affine: bool = True
    conv: bool = False
    padding: int = 1
    shape: tuple[int, int, int, int] = (3, 5, 7, 9)

    def inputs(self, seed: int = 0, mean: float = 0.0, layout: torch.memory_format = LAYOUTS[0]) -> list[Tensor]:
        """In float64: the maps, weight and bias or not, and the residual, or the images, the kernel, ..."""
        generator = torch.Generator().manual_seed(seed)
        n, channels, *_ = self.shape
        draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
        x = laid(mean * draw(n, channels, 1, 1).sign() + draw(*self.shape), layout)
        kernel = [0.3 * draw(6, channels, 3, 3)] if self.conv else []
        width = 6 if self.conv else channels
        affine = [1 + 0.5 * draw(width), 0.5 * draw(width)] if self.affine else []
        residual = [laid(draw(*self.shape), layout)] if self.residual else []
        return [x, *kernel, *affine, *residual]

    def _named(self, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor], Any, Any, Tensor | None]:
        x, *rest = inputs
        kernel = [rest.pop(0)] if self.conv else []
        residual = rest.pop() if self.residual else None
        weight, bias = rest or (None, None)
        return x, kernel, weight, bias, residual

    def __call__(self, *inputs: Tensor, backend: str | None = None) -> Tensor:
        x, kernel, weight, bias, residual = self._named(list(inputs))
        if self.conv:
            return conv_block(x, *kernel, weight, bias, padding=self.padding, eps=EPS, backend=backend)
        return norm_block(x, weight, bias, residual, eps=EPS, relu=self.relu, pool=self.pool, backend=backend)

    def modules(self, *inputs: Tensor) -> Tensor:
        """What eager PyTorch does; in NCHW, for its group norm takes one pass over channels_last and loses digits."""
        x, kernel, weight, bias, residual = self._named([it.contiguous() for it in inputs])
        x = F.conv2d(x, *kernel, padding=self.padding) if self.conv else x
        y = F.group_norm(x, x.shape[1], weight, bias, EPS)
        y = y if residual is None else y + residual
        y = y.relu() if self.relu or self.conv else y
        return F.avg_pool2d(y, 2) if self.pool or self.conv else y

    def differentiate(self, function: Any, inputs: list[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
        """The result, and the gradients to all that get one; `upstream` is the gradient of the result, or some."""
        leaves = [it.detach() for it in inputs]
        wanted = [it.requires_grad_() for it in (leaves[:1] if self.conv else leaves)]
        out = function(*leaves)
        if upstream is None:
            generator = torch.Generator().manual_seed(9)
            upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


NORMS = [
    Block("pool", pool=True),
    Block("plain", affine=False, relu=False),
    Block("relu"),
    Block("residual", residual=True),
    Block("shortcut", relu=False),
    Block("sum", relu=False, residual=True),
    Block("averages", relu=False, pool=True),
]
CONVS = [
    Block("conv", conv=True, shape=(2, 3, 8, 11)),
    Block("grey", conv=True, shape=(2, 1, 5, 8), padding=3),
    Block("bare", conv=True, shape=(2, 4, 9, 7), padding=0, affine=False),
]
BLOCKS = NORMS + CONVS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "block" in metafunc.fixturenames:
        metafunc.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])


def on(where: Any, inputs: list[Tensor]) -> list[Tensor]:
    return [it.to(where) for it in inputs]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equal_to_modules(block: Block, layout: torch.memory_format, backend: str, device: str) -> None:
    inputs = on(device, block.inputs(layout=layout))
    expected = block.differentiate(block.modules, inputs)
    actual = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)
    assert actual[0].is_contiguous(memory_format=layout)
    assert actual[1].is_contiguous(memory_format=layout)


@many
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(2, 9), st.integers(2, 37)),
    seed=st.integers(0, 99),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_size(block: Block, shape: Any, seed: int, layout: torch.memory_format, backend: str, device: str) -> None:
    n, channels, height, width = shape
    if block.conv:
        channels, height, width = channels % 4 + 1, height + 2, width + 2
    block = Block(**{**vars(block), "shape": (n, channels, height, width)})
    inputs = on(device, block.inputs(seed, layout=layout))
    expected = block.differentiate(block.modules, inputs)
    actual = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("affine", ["same", "wide"])
@pytest.mark.parametrize(("dtype", "mean"), PRECISIONS, ids=str)
def test_accuracy(
    block: Block, dtype: torch.dtype, mean: float, affine: str, layout: torch.memory_format, backend: str, device: str
) -> None:
    """Of results and gradients; gradients near a kink of the ReLU are not compared, where a rounding decides."""
    columns: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for seed in range(5):
        inputs = [it.to(dtype) for it in block.inputs(seed, mean, layout)]
        if affine == "wide" and block.affine:
            places = (2, 3) if block.conv else (1, 2)
            inputs = [it.float() if i in places and dtype != torch.float64 else it for i, it in enumerate(inputs)]
        exact_inputs = [it.double() for it in inputs]
        upstream = away_from_the_kink(block, exact_inputs, dtype)
        exact = block.differentiate(block.modules, exact_inputs, upstream)
        eager = block.differentiate(block.modules, inputs, upstream.to(dtype))
        actual = block.differentiate(
            lambda *it: block(*it, backend=backend), on(device, inputs), upstream.to(device, dtype)
        )
        assert [it.dtype for it in actual] == [it.dtype for it in eager]
        columns.append(list(zip(actual, eager, exact, strict=True)))
    for triples in zip(*columns, strict=True):
        assert_accurate(list(triples), dtype, backend)


def away_from_the_kink(block: Block, inputs: list[Tensor], dtype: torch.dtype) -> Tensor:
    """A gradient of the result that is zero where the ReLU of one of its pixels might go either way at `dtype`."""
    smooth = Block(**{**vars(block), "relu": False, "pool": False, "conv": False})
    x, *rest = inputs
    y = smooth.modules(F.conv2d(x, rest.pop(0), padding=block.padding) if block.conv else x, *rest)
    kink = y.abs() < 2e3 * torch.finfo(dtype).eps if dtype.itemsize > 2 else y.abs() < 0.1
    near = F.max_pool2d(kink.double(), 2) if block.pool or block.conv else kink.double()
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(near.shape, generator=generator, dtype=torch.float64).to(dtype).double()
    return upstream * (near == 0) if block.relu or block.conv else upstream


def test_by_hand(backend: str, device: str) -> None:
    """Two channels of 2x2 pixels: the first is ±1 already, the second a constant."""
    x = torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]]], dtype=torch.float64, device=device)
    weight, bias = x.new_tensor([2.0, 3.0]), x.new_tensor([1.0, 4.0])
    options = {"eps": 0.0, "relu": True, "backend": backend}
    rectified = norm_block(x[:, :1], weight[:1], bias[:1], pool=False, **options)
    assert rectified.tolist() == [[[[3, 0], [0, 3]]]]
    pooled = norm_block(x, weight, bias, pool=True, **{**options, "eps": 1e-5})
    torch.testing.assert_close(pooled.flatten(), x.new_tensor([1.5, 4.0]), rtol=1e-5, atol=0)
    kernel = x.new_zeros(1, 1, 3, 3)
    kernel[..., 1, 0] = 2  # twice the pixel to the left: 0, 2 / 0, −2 has the mean 0 and the deviation sqrt 2
    shifted = conv_block(x[:, :1], kernel, None, None, padding=1, eps=0.0, backend=backend)
    assert shifted.item() == pytest.approx(2**0.5 / 4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nan_stays_where_it_is(block: Block, layout: torch.memory_format, backend: str, device: str) -> None:
    """An image with a NaN has NaN in its channels, in the result and in its gradient; others are left alone."""
    inputs = on(device, block.inputs(layout=layout))
    clean = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    inputs[0][0, 0, 2, 2] = torch.nan
    out, gradient, *_ = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    channels = slice(None) if block.conv else slice(1)
    assert out[0, channels].isnan().all()
    assert gradient[0, channels].isnan().all() or block.conv
    assert gradient[0].isnan().any()
    assert torch.equal(out[1:], clean[0][1:])
    assert torch.equal(gradient[1:], clean[1][1:])
    if not block.conv:
        assert torch.equal(out[0, 1:], clean[0][0, 1:])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradient_of_a_kink_is_zero(layout: torch.memory_format, backend: str, device: str) -> None:
    """And that of a NaN is what comes down, as it is of PyTorch's ReLU."""
    x = laid(torch.zeros(1, 2, 2, 2, dtype=torch.float64, device=device), layout)
    residual = laid(x.new_tensor([0.0, 1.0, -1.0, torch.nan]).reshape(1, 1, 2, 2).expand(1, 2, 2, 2), layout)
    norm_block(
        x, None, None, residual.requires_grad_(), eps=1.0, relu=True, pool=False, backend=backend
    ).sum().backward()
    assert residual.grad.flatten().tolist() == [0, 1, 0, 1] * 2


def test_odd_rows_and_columns_are_dropped(backend: str, device: str) -> None:
    """From the average, and not from the statistics."""
    block = Block("pool", pool=True, shape=(1, 1, 3, 5))
    inputs = on(device, block.inputs())
    out, gradient, *_ = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    assert out.shape == (1, 1, 1, 2)
    assert_close(out, block.modules(*inputs))
    assert (gradient[..., 2, :] != 0).all()
    assert (gradient[..., 4] != 0).all()


def test_gradcheck(block: Block, backend: str, device: str) -> None:
    inputs = on(device, block.inputs())
    wanted = [it.requires_grad_() for it in (inputs[:1] if block.conv else inputs)]
    assert wanted
    assert torch.autograd.gradcheck(lambda *it: block(*it, backend=backend), inputs, fast_mode=True)


def test_gradients_that_are_not_asked_for(backend: str, device: str) -> None:
    """Those of a frozen norm, of a shortcut alone, of a weight alone: the others are as they were."""
    block = Block("residual", residual=True)
    inputs = on(device, block.inputs())
    out, *gradients = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    for i, expected in enumerate(gradients):
        leaves = [it.detach().requires_grad_(i == j) for j, it in enumerate(inputs)]
        generator = torch.Generator().manual_seed(9)
        upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        with Recorder() as recorder:
            block(*leaves, backend=backend).backward(upstream)
        assert recorder.passed("affine_grad") == [i in (1, 2)]
        assert recorder.passed("residual_grad") == [i == 3]
        assert_close(leaves[i].grad, expected)
        assert all(it.grad is None for j, it in enumerate(leaves) if i != j)


def test_no_graph_without_need(block: Block, backend: str, device: str) -> None:
    inputs = on(device, block.inputs())
    leaves = [inputs[0].clone().requires_grad_(), *inputs[1:]]
    with torch.no_grad(), Recorder() as recorder:
        without = block(*leaves, backend=backend)
    assert recorder.passed("needs_grad") == [False]
    with torch.inference_mode():
        inference = block(*leaves, backend=backend)
    assert without.grad_fn is inference.grad_fn is None
    assert torch.equal(without, inference)
    assert torch.equal(without, block(*leaves, backend=backend))


def test_two_backwards_and_no_second_order(block: Block, backend: str, device: str) -> None:
    inputs = on(device, block.inputs())
    x = inputs[0].requires_grad_()
    value = block(x, *inputs[1:], backend=backend).square().sum()
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (again,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match=r"blocks are first-order: .* built with fused=False"):
        again.sum().backward()


def test_inputs_are_left_alone(block: Block, backend: str, device: str) -> None:
    inputs = on(device, block.inputs())
    before = [(it._version, it.clone()) for it in inputs]
    block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    with torch.no_grad():
        block(*inputs, backend=backend)
    for it, (version, value) in zip(inputs, before, strict=True):
        assert it._version == version
        assert torch.equal(it, value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bitwise_the_same_from_run_to_run(block: Block, layout: Any, backend: str, device: str) -> None:
    large = Block(**{**vars(block), "shape": (7, 3 if block.conv else 19, 12, 17)})
    inputs = [it.to(device, torch.float32) for it in large.inputs(layout=layout)]
    one, two = (large.differentiate(lambda *it: large(*it, backend=backend), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for shuffled, whole in zip(large(*_first_images(inputs, large), backend=backend), one[0][:2], strict=True):
        assert torch.equal(shuffled, whole)


def _first_images(inputs: list[Tensor], block: Block) -> list[Tensor]:
    x, *rest = inputs
    return [x[:2], *rest[:-1], rest[-1][:2]] if block.residual else [x[:2], *rest]


def test_maps_that_lie_otherwise(block: Block, backend: str, device: str) -> None:
    inputs = on(device, block.inputs())
    strided = [it.transpose(2, 3).contiguous().transpose(2, 3) if it.ndim == 4 else it for it in inputs]
    expected = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    actual = block.differentiate(lambda *it: block(*it, backend=backend), strided)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_no_images(block: Block, backend: str, device: str) -> None:
    inputs = on(device, Block(**{**vars(block), "shape": (0, *block.shape[1:])}).inputs())
    out, gradient, *rest = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
    assert out.shape == block.modules(*on(device, block.inputs()))[:0].shape
    assert gradient.shape == inputs[0].shape
    assert all((it == 0).all() for it in rest)


def test_functional_gradients(block: Block, backend: str, device: str) -> None:
    x, *rest = on(device, block.inputs())
    loss = lambda it: block(it, *rest, backend=backend).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(leaf := x.detach().requires_grad_()), leaf)[0]
    assert_close(torch.func.grad(loss)(x.detach()), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_is_eager(block: Block, dynamic: bool, layout: Any, backend: str, device: str) -> None:
    """As one graph, which serves any number of images of any size where shapes are dynamic."""
    function, counter = compiled(lambda *it: block(*it, backend=backend), dynamic)
    counts = []
    for extra in range(2):
        n, channels, height, width = block.shape
        sized = Block(**{**vars(block), "shape": (n + extra, channels, height + extra, width + 2 * extra)})
        inputs = on(device, sized.inputs(layout=layout))
        expected = block.differentiate(lambda *it: block(*it, backend=backend), inputs)
        actual = block.differentiate(function, inputs)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        counts.append(counter.frame_count)
    assert counts[1] - counts[0] == (0 if dynamic else 1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(block: Block, needs_grad: bool, layout: torch.memory_format, backend: str, device: str) -> None:
    inputs = [it.to(device, torch.float32) for it in block.inputs(layout=layout)]
    with Recorder() as recorder:
        if needs_grad:
            block.differentiate(lambda *it: block(*it, backend=backend), inputs)
        else:
            block(*inputs, backend=backend)
    assert [overload._opname for overload, _ in recorder.calls] == list(CONV if block.conv else NORM)[: 1 + needs_grad]
    for overload, arguments in recorder.calls:
        assert overload._overloadname == backend
        torch.library.opcheck(overload, arguments)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_shapes_on_the_meta_device(block: Block, layout: torch.memory_format) -> None:
    inputs = block.inputs(layout=layout)
    real = block.differentiate(block, inputs)
    fake = block.differentiate(block, [it.to("meta") for it in inputs], real[0].to("meta"))
    assert [(it.shape, it.stride(), it.dtype) for it in fake] == [(it.shape, it.stride(), it.dtype) for it in real]


MAPS = torch.randn(2, 3, 4, 4)
KERNEL = torch.randn(5, 3, 3, 3)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "x must be a tensor, got list", lambda: norm([1.0])),
        (TypeError, "x must be float32, float64, bfloat16 or float16, got torch.int64", lambda: norm(MAPS.long())),
        (ValueError, r"x must have shape \(N, C, H, W\), got \(2, 3, 16\)", lambda: norm(MAPS.flatten(2))),
        (ValueError, r"x must have 2x2 pixels or more for pool, got", lambda: norm(MAPS[:, :, :1], pool=True)),
        (ValueError, "weight and bias must be given together", lambda: norm(MAPS, torch.ones(3))),
        (ValueError, r"bias must have shape \(3,\), got \(4,\)", lambda: norm(MAPS, torch.ones(3), torch.ones(4))),
        (
            TypeError,
            "weight must be torch.float32, as weight and bias alike, got torch.bfloat16",
            lambda: norm(MAPS, torch.ones(3).bfloat16(), torch.ones(3).bfloat16()),
        ),
        (ValueError, "residual must be None with pool", lambda: norm(MAPS, residual=MAPS, pool=True)),
        (
            ValueError,
            r"residual must have the shape of x, .*, got \(1, 3, 4, 4\)",
            lambda: norm(MAPS, residual=MAPS[:1]),
        ),
        (TypeError, "residual must have the dtype of x", lambda: norm(MAPS, residual=MAPS.double())),
        (ValueError, "images must have at most 4 channels, got 5", lambda: conv(torch.randn(2, 5, 4, 4), KERNEL)),
        (TypeError, "kernel must have the dtype of images", lambda: conv(MAPS, KERNEL.double())),
        (ValueError, r"kernel must have shape \(C, 3, 3, 3\), got \(5, 1, 3, 3\)", lambda: conv(MAPS, KERNEL[:, :1])),
        (
            ValueError,
            "padding must make 4x4 pixels or more of 2x4 images, got 0",
            lambda: conv(MAPS[:, :, :2], KERNEL, 0),
        ),
        (ValueError, "must not require a gradient", lambda: conv(MAPS, KERNEL.clone().requires_grad_())),
    ],
)
def test_wrong_arguments(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def norm(x: Any, weight: Any = None, bias: Any = None, residual: Any = None, pool: bool = False) -> Tensor:
    return norm_block(x, weight, bias, residual, eps=EPS, relu=True, pool=pool)


def conv(images: Tensor, kernel: Tensor, padding: int = 1) -> Tensor:
    return conv_block(images, kernel, None, None, padding=padding, eps=EPS)


def test_every_backend_has_all_of_them_or_none() -> None:
    assert runnable(*NORM) == runnable(*CONV)
