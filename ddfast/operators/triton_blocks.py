"""The triton backend of the networks' blocks: buffers and launches around `ddfast.kernels`."""

from typing import Any

import torch
from torch import Tensor

from ddfast.kernels.blocks import block_forward
from ddfast.kernels.blocks_backward import affine_gradient, block_backward
from ddfast.kernels.blocks_tiling import block_cut, conv_cut, product_cut, splits_of, tap_cut
from ddfast.kernels.conv_block_backward import image_gradient, tap_products
from ddfast.operators.block_schemas import layout
from ddfast.operators.conv_paths import conv_path, precision_of
from ddfast.operators.launch import chip_of, on_device
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator


def _options(x: Tensor) -> dict[str, Any]:
    return {"LAST": layout(x) == torch.channels_last, "DOUBLE": x.dtype == torch.float64}


_NO_PRODUCT = {"TERMS": 0, "PRECISION": ""}


def _factors(images: Tensor) -> str:
    """What a product multiplies; the interpreter would multiply the bit patterns of 16-bit values, exact in tf32."""
    precision = precision_of(images)
    if precision == "half":
        return "tf32" if images.device.type == "cpu" else "half"
    return precision


def _statistics(x: Tensor, channels: int, needs_grad: bool) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], channels) if needs_grad else 0
    mean, rstd = (x.new_empty(shape, dtype=accumulator(x.dtype)) for _ in range(2))
    return mean, rstd


def _by_tap(kernel: Tensor) -> Tensor:
    """(C, c, 3, 3) -> (c, 3, 3, C): the factors of one tap side by side."""
    return kernel.permute(1, 2, 3, 0).contiguous()


def _convolved(images: Tensor, kernel: Tensor, padding: int) -> tuple[int, int, int]:
    """(C, H', W') of the map."""
    height, width = (extent + 2 * padding - 2 for extent in images.shape[2:])
    return kernel.shape[0], height, width


@on_device
def norm_block(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    pool: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, channels, height, width = x.shape
    options = _options(x)
    shape = (n, channels, height // 2, width // 2) if pool else x.shape
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))
    mean, rstd = _statistics(x, channels, needs_grad)
    cut = block_cut(channels, height, width, options["LAST"], x.element_size())
    block_forward[n * cut.programs,](
        *(x, None, weight, bias, residual, out, mean, rstd),
        *(channels, height, width, 0, height, width, 0, cut.tiles, eps),
        RELU=relu,
        POOL=pool,
        KEEP=needs_grad,
        **options,
        **_NO_PRODUCT,
        **cut.options,
    )
    return out, mean, rstd


@on_device
def norm_block_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    relu: bool,
    pool: bool,
    affine_grad: bool,
    residual_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, channels, height, width = x.shape
    options = _options(x)
    gradient = torch.empty_like(x)
    of_residual = torch.empty_like(x) if residual_grad else None
    sums = mean.new_empty(2, n, channels) if affine_grad else None
    cut = block_cut(channels, height, width, options["LAST"], x.element_size())
    block_backward[n * cut.programs,](
        *(grad, x, None, weight, bias, residual, mean, rstd, gradient, of_residual, sums),
        *(n, channels, height, width, 0, height, width, 0, cut.tiles),
        RELU=relu,
        POOL=pool,
        **options,
        **_NO_PRODUCT,
        **cut.options,
    )
    of_weight, of_bias = (
        x.new_empty(0) if weight is None or not affine_grad else torch.empty_like(weight) for _ in range(2)
    )
    if sums is not None:
        affine_gradient[-(-channels // 16),](sums, of_weight, of_bias, n, channels, IMAGES=128, CHANNELS=16)
    return gradient, of_weight, of_bias, x.new_empty(0) if of_residual is None else of_residual


@on_device
def conv_block(
    images: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    padding: int,
    eps: float,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, inputs, *size = images.shape
    channels, height, width = _convolved(images, kernel, padding)
    options = _options(images)
    shape = (n, channels, height // 2, width // 2)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout(images))
    mean, rstd = _statistics(images, channels, needs_grad)
    if conv_path("conv_block", images, kernel, padding) == "product":
        taps, cut = kernel, product_cut(channels, height, width, inputs, images.element_size(), False)
        options |= {"PRECISION": _factors(images)}
    else:
        taps, cut = _by_tap(kernel), conv_cut(channels, height, width, options["DOUBLE"], False)
        options |= _NO_PRODUCT
    block_forward[n * cut.programs,](
        *(images, taps, weight, bias, None, out, mean, rstd),
        *(channels, height, width, inputs, *size, padding, cut.tiles, eps),
        RELU=True,
        POOL=True,
        KEEP=needs_grad,
        **options,
        **cut.options,
    )
    return out, mean, rstd


@on_device
def conv_block_backward(
    grad: Tensor,
    images: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    padding: int,
) -> Tensor:
    n, inputs, *size = images.shape
    channels, height, width = _convolved(images, kernel, padding)
    options = _options(images)
    product = conv_path("conv_block_backward", images, kernel, padding) == "product"
    if product:
        taps, cut = kernel, product_cut(channels, height, width, inputs, images.element_size(), True)
        options |= {"PRECISION": _factors(images)}
    else:
        taps, cut = _by_tap(kernel), tap_cut(channels, height, width, images.element_size())
        options |= _NO_PRODUCT
    splits = splits_of(n, cut.tiles, chip_of(images.device))
    sums = None
    if cut.tiles > 1:
        sums = mean.new_empty(2, n, channels)
        planes = cut if product else conv_cut(channels, height, width, options["DOUBLE"], True)
        block_backward[n * planes.programs,](
            *(grad, images, taps, weight, bias, None, mean, rstd, None, None, sums),
            *(n, channels, height, width, inputs, *size, padding, planes.tiles),
            RELU=True,
            POOL=True,
            **options,
            **planes.options,
        )
    products = mean.new_empty(n, splits, inputs, 9, height, width)
    tap_products[n * splits * cut.tiles,](
        *(grad, images, taps, weight, bias, mean, rstd, sums, products),
        *(n, channels, height, width, inputs, *size, padding, cut.tiles, splits),
        INPUTS=inputs,
        **options,
        **cut.options,
    )
    gradient = torch.empty_like(images)
    tiles = -(-size[0] * size[1] // 256)
    image_gradient[n * tiles,](
        *(products, gradient, height, width, *size, padding, tiles, splits),
        INPUTS=inputs,
        LAST=options["LAST"],
        PIXELS=256,
    )
    return gradient


for _operator in (norm_block, norm_block_backward, conv_block, conv_block_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
