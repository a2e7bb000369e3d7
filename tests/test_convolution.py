"""The 3x3 convolution at Winograd's points, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, capabilities_to_test, frobenius, runnable
from tracing import Recorder, compiled

from ddfast.operators import conv3x3, native
from ddfast.operators.convolution import pays

LAST = torch.channels_last
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.operators("conv3x3")]

SHAPES = [
    (2, 16, 32, 8, 8),
    (3, 32, 16, 5, 7),
    (1, 48, 80, 3, 4),
    (2, 16, 16, 1, 1),
    (1, 16, 144, 9, 2),
    (0, 16, 16, 4, 4),
]


def inputs(n, depth, width, height, across, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    x = draw(n, depth, height, across).contiguous(memory_format=LAST)
    return x, draw(width, depth, 3, 3) / (9 * depth) ** 0.5, draw(width)


def differentiated(function, *tensors):
    """The result, and the gradients of its sum weighted by its own position."""
    tensors = [it.detach().clone(memory_format=torch.preserve_format).requires_grad_() for it in tensors]
    out = function(*tensors)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]


def exact(x, kernel, bias):
    return F.conv2d(x, kernel, bias, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients(shape, dtype, backend, device):
    """Of the same rounded inputs; what is written in half precision is rounded once more."""
    given = [it.to(device) for it in inputs(*shape, dtype)]
    results = differentiated(lambda *it: conv3x3(*it, backend=backend), *given)
    expected = differentiated(exact, *(it.double() for it in given))
    tolerance = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    for result, right in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert result.shape == right.shape
        if right.numel():
            assert frobenius(result, right) < tolerance
    assert results[0].is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(("channels", "size"), [(64, 16), (128, 16), (256, 8), (512, 4)])
def test_error_is_at_most_twice_that_of_pytorch(channels, size, backend, device):
    """In the same memory format, where `pays` lets networks use it."""
    given = [it.to(device) for it in inputs(32, channels, channels, size, size, torch.float32)]
    given[1] = given[1].contiguous(memory_format=LAST)
    assert pays(*given[:2])
    expected = differentiated(exact, *(it.double() for it in given))
    ours, theirs = (differentiated(run, *given) for run in (lambda *it: conv3x3(*it, backend=backend), exact))
    for result, eager, right in zip(ours[:2], theirs[:2], expected[:2], strict=True):
        assert frobenius(result, right) < max(2 * frobenius(eager, right), 4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("shape", [(2, 48, 80, 6, 9), (17, 144, 80, 3, 4), (2, 80, 144, 6, 9)], ids=str)
@pytest.mark.parametrize("name", capabilities_to_test())
def test_every_instruction_set(name, shape):
    """Whether tiles or output channels are fewer decides the way through."""
    given = inputs(*shape, torch.float32)
    before = native.module.build_info()["in use"]
    native.module.set_capability(name)
    try:
        results = differentiated(lambda *it: conv3x3(*it, backend="cpp"), *given)
    finally:
        native.module.set_capability(before)
    for result, right in zip(results, differentiated(exact, *(it.double() for it in given)), strict=True):
        assert frobenius(result, right) < 2e-6


@pytest.mark.parametrize("channels", [(32, 48), (144, 160)], ids=str)
def test_an_image_is_the_same_in_any_batch(channels, backend, device):
    """Also where its batch has tiles enough for the other way through."""
    x, kernel, bias = (it.to(device) for it in inputs(37, *channels, 8, 8, torch.float32))
    whole = conv3x3(x, kernel, bias, backend=backend)
    for rows in (slice(0, 1), slice(5, 12), slice(36, 37)):
        assert torch.equal(conv3x3(x[rows], kernel, bias, backend=backend), whole[rows])


@pytest.mark.parametrize("width", [48, 208])
def test_bitwise_the_same_with_any_number_of_threads(width, backend, device):
    given = [it.to(device) for it in inputs(9, 32, width, 8, 8, torch.float32)]
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(conv3x3(*given, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_nan_reaches_the_pixels_of_its_tile_alone(backend, device):
    """Winograd mixes the pixels of a tile: NaN in gives NaN out there, and nowhere else."""
    x, kernel, bias = (it.to(device) for it in inputs(2, 16, 16, 12, 12, torch.float32))
    expected = conv3x3(x, kernel, bias, backend=backend)
    x[1, 3, 9, 9] = torch.nan
    out = conv3x3(x, kernel, bias, backend=backend)
    assert out[1, :, 8:11, 8:11].isnan().all()
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1, :, :4, :4], expected[1, :, :4, :4])


def test_layouts_of_the_kernel_and_of_the_maps(backend, device):
    x, kernel, bias = (it.to(device) for it in inputs(2, 32, 16, 8, 8, torch.float32))
    expected = conv3x3(x, kernel, bias, backend=backend)
    assert torch.equal(conv3x3(x.contiguous(), kernel, bias, backend=backend), expected)
    assert torch.equal(conv3x3(x, kernel.contiguous(memory_format=LAST), bias, backend=backend), expected)
    assert_close(conv3x3(x, kernel, None, backend=backend) + bias[:, None, None], expected, 1e-6)


def test_a_frozen_kernel_keeps_no_map(backend, device):
    x, kernel, _ = (it.to(device) for it in inputs(2, 16, 16, 8, 8, torch.float32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda it: kept.append(it.shape), lambda it: it):
        conv3x3(x.requires_grad_(), kernel, None, backend=backend)
    assert kept == [kernel.shape]


def test_a_second_order_raises_and_says_so(backend, device):
    x, kernel, _ = (it.to(device) for it in inputs(1, 16, 16, 4, 4, torch.float32))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(conv3x3(x, kernel, None, backend=backend).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fused=False"):
        gradient.sum().backward()


@pytest.mark.parametrize("adjoint", [False, True])
def test_opcheck(adjoint, backend, device):
    x, kernel, bias = (it.to(device) for it in inputs(2, 16, 16, 5, 4, torch.float32))
    overload = getattr(torch.ops.ddfast.conv3x3, backend)
    torch.library.opcheck(overload, (x, kernel.contiguous(memory_format=LAST), bias, adjoint))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager(dynamic, backend, device):
    given = [it.to(device) for it in inputs(2, 16, 32, 5, 4, torch.float32)]
    function = lambda *it: conv3x3(*it, backend=backend)  # noqa: E731
    run, counter = compiled(function, dynamic)
    for result, right in zip(differentiated(run, *given), differentiated(function, *given), strict=True):
        assert torch.equal(result, right)
    assert counter.frame_count == 1


def test_the_adjoint_runs_on_the_backend_of_the_forward(backend, device):
    given = [it.to(device) for it in inputs(1, 16, 16, 4, 4, torch.float32)]
    with Recorder() as recorder:
        differentiated(lambda *it: conv3x3(*it, backend=backend), *given)
    overloads = {call for call, _ in recorder.calls}
    assert overloads == {getattr(torch.ops.ddfast.conv3x3, backend)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, kernel, bias: (x.double(), kernel.double(), None), "x must not be float64"),
        (lambda x, kernel, bias: (x, kernel[:, :8], None), "x must have 8 channels, got 16"),
        (lambda x, kernel, bias: (x, kernel[:8], None), "kernel must have multiples of 16 channels"),
        (lambda x, kernel, bias: (x, kernel.half(), None), "the dtype of x"),
        (lambda x, kernel, bias: (x, kernel[..., :2], None), "kernel must have shape"),
        (lambda x, kernel, bias: (x, kernel, bias[:3]), "bias must have shape"),
    ],
)
@pytest.mark.skipif(("cpp", "cpu") not in runnable("conv3x3"), reason="the cpp backend is not here")
def test_what_the_kernel_cannot_do_is_said(change, message):
    with pytest.raises(RuntimeError, match=message):
        conv3x3(*change(*inputs(1, 16, 16, 4, 4, torch.float32)), backend="cpp")
