"""The reference backend of the operators of networks, in the accumulator's dtype, with gradients in closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfast.operators.block_schemas import layout
from ddfast.operators.closed_form import product, without_autocast
from ddfast.operators.library import implement
from ddfast.operators.schemas import accumulator


def _wide(x: Tensor) -> Tensor:
    """In the accumulator's dtype, and NCHW: sums over an axis that lies contiguously are the more accurate ones."""
    return x.to(accumulator(x.dtype)).contiguous()


def _per_channel(parameter: Tensor | None, x: Tensor, default: float) -> Tensor:
    """(C,) -> (C, 1, 1) in the dtype of x."""
    return x.new_tensor(default) if parameter is None else parameter.to(x.dtype)[:, None, None]


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean = x.mean((2, 3))
    variance = (x - mean[:, :, None, None]).square().mean((2, 3))
    return mean, (variance + eps).rsqrt()


def _normalised(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x - mean[:, :, None, None]) * rstd[:, :, None, None]


def _gradient(grad: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    """dL/dx of x_hat = (x − mean)·rstd, for a gradient with respect to weight·x_hat + bias."""
    shared = grad.mean((2, 3), keepdim=True) + x_hat * (grad * x_hat).mean((2, 3), keepdim=True)
    return weight * rstd[:, :, None, None] * (grad - shared)


def _unpooled(grad: Tensor, y: Tensor) -> Tensor:
    """The gradient with respect to y of its 2x2 averages, zero in the row or column that they leave out."""
    spread = (grad / 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.pad(spread, (0, y.shape[3] % 2, 0, y.shape[2] % 2))


def _like(x: Tensor, result: Tensor) -> Tensor:
    return torch.empty_like(result, dtype=x.dtype, memory_format=layout(x)).copy_(result)


def _kept(needs_grad: bool, *statistics: Tensor) -> tuple[Tensor, ...]:
    return statistics if needs_grad else tuple(it.new_empty(0) for it in statistics)


@without_autocast
def norm_block(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    pool: bool,
    needs_grad: bool,
) -> tuple[Tensor, ...]:
    wide = _wide(x)
    mean, rstd = _statistics(wide, eps)
    y = _normalised(wide, mean, rstd) * _per_channel(weight, wide, 1) + _per_channel(bias, wide, 0)
    y = y if residual is None else y + residual
    y = y.relu() if relu else y
    y = F.avg_pool2d(y, 2) if pool else y
    return _like(x, y), *_kept(needs_grad, mean, rstd)


@without_autocast
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
) -> tuple[Tensor, ...]:
    grad, x_hat = _wide(grad), _normalised(_wide(x), mean, rstd)
    scale = _per_channel(weight, x_hat, 1)
    grad = _unpooled(grad, x_hat) if pool else grad
    if relu:
        y = x_hat * scale + _per_channel(bias, x_hat, 0)
        grad = torch.where((y if residual is None else y + residual) <= 0, 0, grad)
    affine = [x.new_empty(0) for _ in range(2)]
    if affine_grad and weight is not None:
        affine = [it.sum((2, 3)).sum(0).to(weight.dtype) for it in (grad * x_hat, grad)]
    x_grad = _like(x, _gradient(grad, x_hat, rstd, scale))
    return x_grad, *affine, _like(x, grad) if residual_grad else x.new_empty(0)


def _convolution(images: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """(N, c, H, W) -> (N, C, H', W'), as a product with all 3x3 patches."""
    size = [extent + 2 * padding - 2 for extent in images.shape[2:]]
    patches = F.unfold(images, 3, padding=padding)  # (N, c·9, H'·W')
    return product(kernel.flatten(1).to(images.dtype), patches).unflatten(2, size)


@without_autocast
def conv_block(
    images: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    padding: int,
    eps: float,
    needs_grad: bool,
) -> tuple[Tensor, ...]:
    x = _convolution(_wide(images), kernel, padding)
    out, mean, rstd = norm_block(x, weight, bias, None, eps, True, True, needs_grad)
    return _like(images, out), mean, rstd


@without_autocast
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
    x = _convolution(_wide(images), kernel, padding)
    x_grad, *_ = norm_block_backward(grad, x, weight, bias, None, mean, rstd, True, True, False, False)
    patches = product(kernel.flatten(1).T.to(x.dtype), x_grad.flatten(2))  # (N, c·9, H'·W')
    return _like(images, F.fold(patches, images.shape[2:], 3, padding=padding))


for _operator in (norm_block, norm_block_backward, conv_block, conv_block_backward):
    implement("reference", _operator.__name__, _operator, "CompositeExplicitAutograd")
