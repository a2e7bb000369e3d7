"""The triton backend of the networks' blocks: buffers and launches around `ddfast.kernels`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfast.kernels.blocks import block_forward
from ddfast.kernels.blocks_backward import affine_gradient, block_backward
from ddfast.kernels.blocks_tiling import block_cut, conv_cut, product_cut, splits_of, tap_cut
from ddfast.kernels.conv_block_backward import image_gradient, tap_products
from ddfast.kernels.tiling import Chip
from ddfast.operators.block_schemas import layout
from ddfast.operators.conv_paths import conv_path, precision_of
from ddfast.operators.launch import Launch, Spec, chip_of, on_device, planned, spec
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator

Dtypes = tuple[torch.dtype | None, ...]  # of tensors that may be None

_NO_PRODUCT: dict[str, Any] = {"TERMS": 0, "PRECISION": ""}


def _dtypes(*tensors: Tensor | None) -> Dtypes:
    return tuple(None if it is None else it.dtype for it in tensors)


def _options(dtype: torch.dtype, last: bool) -> dict[str, Any]:
    return {"LAST": last, "DOUBLE": dtype == torch.float64}


def _factors(images: Tensor) -> str:
    """What a product multiplies; the interpreter would multiply the bit patterns of 16-bit values, exact in tf32."""
    precision = precision_of(images)
    if precision == "half":
        return "tf32" if images.device.type == "cpu" else "half"
    return precision


def _statistics(x: Tensor, channels: int, needs_grad: bool) -> tuple[Tensor, Tensor]:
    shape, dtype = (x.shape[0], channels) if needs_grad else (0,), accumulator(x.dtype)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _by_tap(kernel: Tensor) -> Tensor:
    """(C, c, 3, 3) -> (c, 3, 3, C): the factors of one tap side by side."""
    return kernel.permute(1, 2, 3, 0).contiguous()


@planned
def _norm_plan(x: Spec, last: bool, given: Dtypes, relu: bool, pool: bool, keep: bool) -> Launch:
    n, channels, height, width = x.shape
    cut = block_cut(channels, height, width, last, x.dtype.itemsize)
    return Launch(
        block_forward,
        (n * cut.programs,),
        (channels, height, width, 0, height, width, 0, cut.tiles),
        RELU=relu, POOL=pool, KEEP=keep, **_options(x.dtype, last), **_NO_PRODUCT, **cut.options,
    )  # fmt: skip


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
    form = layout(x)
    shape = (n, channels, height // 2, width // 2) if pool else x.shape
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
    mean, rstd = _statistics(x, channels, needs_grad)
    given = _dtypes(weight, bias, residual)
    launch = _norm_plan(spec(x), form == torch.channels_last, given, relu, pool, needs_grad)
    launch(x, None, weight, bias, residual, out, mean, rstd, floats=(eps,))
    return out, mean, rstd


class NormBackward(NamedTuple):
    block: Launch
    affine: Launch | None


@planned
def _norm_backward_plan(
    x: Spec, last: bool, given: Dtypes, relu: bool, pool: bool, affine_grad: bool, residual_grad: bool
) -> NormBackward:
    n, channels, height, width = x.shape
    cut = block_cut(channels, height, width, last, x.dtype.itemsize)
    block = Launch(
        block_backward,
        (n * cut.programs,),
        (n, channels, height, width, 0, height, width, 0, cut.tiles),
        RELU=relu, POOL=pool, **_options(x.dtype, last), **_NO_PRODUCT, **cut.options,
    )  # fmt: skip
    affine = Launch(affine_gradient, (-(-channels // 16),), (n, channels), IMAGES=128, CHANNELS=16)
    return NormBackward(block, affine if affine_grad else None)


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
    n, channels = x.shape[:2]
    given = _dtypes(grad, weight, bias, residual, mean)
    last = layout(x) == torch.channels_last
    plan = _norm_backward_plan(spec(x), last, given, relu, pool, affine_grad, residual_grad)
    gradient = torch.empty_like(x)
    of_residual = torch.empty_like(x) if residual_grad else None
    sums = mean.new_empty(2, n, channels) if affine_grad else None
    plan.block(grad, x, None, weight, bias, residual, mean, rstd, gradient, of_residual, sums)
    of_weight, of_bias = (
        x.new_empty(0) if weight is None or not affine_grad else torch.empty_like(weight) for _ in range(2)
    )
    if plan.affine is not None:
        plan.affine(sums, of_weight, of_bias)
    return gradient, of_weight, of_bias, x.new_empty(0) if of_residual is None else of_residual


@planned
def _conv_plan(
    images: Spec, last: bool, kernel: Spec, given: Dtypes, padding: int, keep: bool, factors: str | None
) -> Launch:
    """`factors` of a product, or None for multiplications one by one."""
    (n, inputs, *size), channels = images.shape, kernel.shape[0]
    height, width = (extent + 2 * padding - 2 for extent in size)
    options = _options(images.dtype, last)
    if factors is None:
        cut = conv_cut(channels, height, width, options["DOUBLE"], False)
        options |= _NO_PRODUCT
    else:
        cut = product_cut(channels, height, width, inputs, images.dtype.itemsize, False)
        options |= {"PRECISION": factors}
    return Launch(
        block_forward,
        (n * cut.programs,),
        (channels, height, width, inputs, *size, padding, cut.tiles),
        RELU=True, POOL=True, KEEP=keep, **options, **cut.options,
    )  # fmt: skip


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
    (n, _, rows, columns), channels, form = images.shape, kernel.shape[0], layout(images)
    shape = (n, channels, (rows + 2 * padding - 2) // 2, (columns + 2 * padding - 2) // 2)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=form)
    mean, rstd = _statistics(images, channels, needs_grad)
    product = conv_path("conv_block", images, kernel, padding) == "product"
    factors, taps = (_factors(images), kernel) if product else (None, _by_tap(kernel))
    given, last = _dtypes(weight, bias), form == torch.channels_last
    launch = _conv_plan(spec(images), last, spec(kernel), given, padding, needs_grad, factors)
    launch(images, taps, weight, bias, None, out, mean, rstd, floats=(eps,))
    return out, mean, rstd


class ConvBackward(NamedTuple):
    planes: Launch | None  # sums of whole planes first, where a tile has not all of one
    taps: Launch
    image: Launch
    products: tuple[int, ...]


@planned
def _conv_backward_plan(
    images: Spec, last: bool, kernel: Spec, given: Dtypes, padding: int, factors: str | None, chip: Chip
) -> ConvBackward:
    (n, inputs, *size), channels = images.shape, kernel.shape[0]
    height, width = (extent + 2 * padding - 2 for extent in size)
    options, itemsize = _options(images.dtype, last), images.dtype.itemsize
    if factors is None:
        cut = tap_cut(channels, height, width, itemsize)
        planes = conv_cut(channels, height, width, options["DOUBLE"], True)
        options |= _NO_PRODUCT
    else:
        cut = planes = product_cut(channels, height, width, inputs, itemsize, True)
        options |= {"PRECISION": factors}
    splits, tiles = splits_of(n, cut.tiles, chip), -(-size[0] * size[1] // 256)
    sizes = (n, channels, height, width, inputs, *size, padding)
    whole = Launch(
        block_backward,
        (n * planes.programs,),
        (*sizes, planes.tiles),
        RELU=True,
        POOL=True,
        **options,
        **planes.options,
    )
    taps = Launch(
        tap_products, (n * splits * cut.tiles,), (*sizes, cut.tiles, splits), INPUTS=inputs, **options, **cut.options
    )
    image = Launch(
        image_gradient,
        (n * tiles,),
        (height, width, *size, padding, tiles, splits),
        INPUTS=inputs,
        LAST=last,
        PIXELS=256,
    )
    return ConvBackward(whole if cut.tiles > 1 else None, taps, image, (n, splits, inputs, 9, height, width))


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
    product = conv_path("conv_block_backward", images, kernel, padding) == "product"
    factors, taps = (_factors(images), kernel) if product else (None, _by_tap(kernel))
    given, last = _dtypes(grad, weight, bias, mean), layout(images) == torch.channels_last
    plan = _conv_backward_plan(spec(images), last, spec(kernel), given, padding, factors, chip_of(images.device))
    sums = None
    if plan.planes is not None:
        sums = mean.new_empty(2, len(images), len(kernel))
        plan.planes(grad, images, taps, weight, bias, None, mean, rstd, None, None, sums)
    products = mean.new_empty(plan.products)
    plan.taps(grad, images, taps, weight, bias, mean, rstd, sums, products)
    gradient = torch.empty_like(images)
    plan.image(products, gradient)
    return gradient


for _operator in (norm_block, norm_block_backward, conv_block, conv_block_backward):
    implement("triton", _operator.__name__, _operator, "CompositeExplicitAutograd")
