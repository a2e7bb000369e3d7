"""What is the Triton kernel's own: programs that share an image, channels by parts, addresses, and its constants."""

import pytest
import torch
import triton
import triton.language as tl
from oracle import assert_close, differentiate, runnable

from ddfast import operators
from ddfast.kernels import augment as kernel
from ddfast.operators import schemas, triton_augment

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = next((device for backend, device in runnable("augment") if backend == "triton"), None)
on_triton = pytest.mark.skipif(DEVICE is None, reason="triton needs a GPU, or TRITON_INTERPRET=1")


def test_its_table_is_the_operators():
    for name in ("COLOR", "SHIFT", "CUT", "MIRROR", "SAMPLE", "TABLE"):
        assert getattr(kernel, name).value == getattr(schemas, name)


@on_triton
@pytest.mark.parametrize("pixels", [8, 16, 64])
@pytest.mark.parametrize("many", [1, 1024], ids=["one recolors", "all recolor"])
@pytest.mark.parametrize("size", [(3, 5, 9), (6, 4, 4)], ids=str)
def test_any_number_of_programs_and_channels_of_an_image(monkeypatch, pixels, many, size):
    monkeypatch.setattr(triton_augment, "PIXELS", pixels)
    monkeypatch.setattr(triton_augment, "MANY", many)
    rows = [
        (schemas.COLOR, 0.8, 0.3, -0.2, 0, 0.4),
        (schemas.SHIFT, -1, 2, 0, 0, 0),
        (schemas.CUT, 1, 3, -2, 2, 0),
        (schemas.MIRROR, 0, 0, 0, 0, 0),
        (schemas.SAMPLE, 0.9, 0.2, -0.3, 1.1, 0),
    ]
    table = torch.tensor(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    images, upstream = (torch.randn(5, 2, *size, generator=generator, dtype=torch.float64) for _ in "12")

    def run(backend, device):
        call = lambda leaf: operators.augment(leaf, table.to(device), backend=backend)  # noqa: E731
        return differentiate(call, images.to(device), upstream.to(device))

    for ours, right in zip(run("triton", DEVICE), run("reference", "cpu"), strict=True):
        assert_close(ours, right)


@triton.jit
def addresses(out, row_stride, column_stride, channel_stride, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    p = tl.arange(0, PIXELS)
    strides = (channel_stride, row_stride, column_stride)
    for channel in range(CHANNELS):
        cells = kernel.cells_of(p // 4, p % 4, strides) + kernel.channel_of(0, channel, strides)
        tl.store(out + channel * PIXELS + p, cells)


@on_triton
@pytest.mark.parametrize("strides", [(2**30, 4, 1), (1, 2**31, 3), (16, 4, 2**32)])
def test_addresses_need_more_than_32_bits(strides):
    channel_stride, row_stride, column_stride = strides
    out = torch.zeros(4, 16, dtype=torch.int64, device=DEVICE)
    addresses[1,](out, row_stride, column_stride, channel_stride, 4, 16)
    c, i, j = torch.meshgrid(torch.arange(4), torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(out.cpu(), (c * channel_stride + i * row_stride + j * column_stride).flatten(1))
