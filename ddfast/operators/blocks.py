"""The operators that networks are made of, as autograd functions: what a block keeps for backward is its input."""

from typing import Any

import torch
from torch import Tensor

from ddfast.checks import floats, same
from ddfast.operators.block_schemas import layout
from ddfast.operators.first_order import BLOCKS, applied, constant, first_order
from ddfast.operators.library import overload
from ddfast.operators.schemas import accumulator

MOST_IMAGE_CHANNELS = 4  # of conv_block


class NormBlock(torch.autograd.Function):
    """The gradient flows to `x`, `weight`, `bias` and `residual`, once."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        options: tuple[bool, bool],
        needs_grad: bool,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        return overload("norm_block", backend, x)(x, weight, bias, residual, eps, *options, needs_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, residual, _, options, _, backend = inputs
        _, *statistics = output
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        relu, _ = options
        ctx.save_for_backward(x, weight, bias, residual if relu else None, *statistics)
        ctx.options, ctx.backend = options, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        x, weight, *rest = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        run = overload("norm_block_backward", ctx.backend, x)
        upstream = constant(_laid, grad, x)
        gradients = constant(run, upstream, x, weight, *rest, *ctx.options, wanted[1] or wanted[2], wanted[3])
        once = (first_order(gradient, grad, x, weight, what=BLOCKS) for gradient in gradients)
        x_grad, weight_grad, bias_grad, residual_grad = (
            gradient if asked else None for gradient, asked in zip(once, wanted, strict=True)
        )
        return x_grad, weight_grad, bias_grad, residual_grad, None, None, None, None


class ConvBlock(torch.autograd.Function):
    """The gradient flows to `images` alone, once."""

    @staticmethod
    def forward(
        images: Tensor,
        kernel: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        padding: int,
        eps: float,
        needs_grad: bool,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        return overload("conv_block", backend, images)(images, kernel, weight, bias, padding, eps, needs_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, padding, _, _, backend = inputs
        _, *statistics = output
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *statistics)
        ctx.padding, ctx.backend = padding, backend

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        images, *rest = ctx.saved_tensors
        run = overload("conv_block_backward", ctx.backend, images)
        gradient = constant(run, constant(_laid, grad, images), images, *rest, ctx.padding)
        return first_order(gradient, grad, images, what=BLOCKS), None, None, None, None, None, None, None


def norm_block(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float,
    relu: bool,
    pool: bool,
    backend: str | None = None,
) -> Tensor:
    """Instance norm, then the residual's sum, ReLU and 2x2 average pool where asked for: (N, C, H, W) -> (N, C, h, w).

    Args:
        x: float32, float64, bfloat16 or float16; NCHW or channels_last, in which the result comes as well.
        weight, bias: (C,), of the dtype of `x` or of float32 (float64 for float64); None is 1 and 0.
        residual: like `x`; only without `pool`.
        eps: added to the variance.
        backend: None is the fastest that runs here.

    Raises:
        TypeError, ValueError: if an argument is not as said.
        NotImplementedError: if `backend` cannot run here.
    """
    _check_maps("x", x, pool)
    _check_affine(weight, bias, x, x.shape[1])
    x = _dense(x)
    if residual is not None:
        if pool:
            raise ValueError("residual must be None with pool, got a tensor")
        floats("residual", residual)
        same("residual", residual, "x", x)
        if residual.shape != x.shape:
            raise ValueError(f"residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}")
        residual = residual.contiguous(memory_format=layout(x))
    needs_grad = _needs_grad(x, weight, bias, residual)
    out, *_ = applied(NormBlock, x, weight, bias, residual, eps, (relu, pool), needs_grad, backend)
    return out


def conv_block(
    images: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    padding: int,
    eps: float,
    backend: str | None = None,
) -> Tensor:
    """3x3 convolution, instance norm, ReLU and 2x2 average pool: (N, c, H, W) -> (N, C, h, w), weights frozen.

    The convolution has no bias, since the norm takes off what is constant in a channel.

    Args:
        images: c at most 4; float32, float64, bfloat16 or float16; NCHW or channels_last, in which the result comes.
        kernel: (C, c, 3, 3), of the dtype of `images`; like weight and bias it gets no gradient.
        weight, bias: (C,), of the dtype of `images` or of float32 (float64 for float64); None is 1 and 0.
        padding: pixels of zeros on every side.
        eps: added to the variance.
        backend: None is the fastest that runs here.

    Raises:
        TypeError, ValueError: if an argument is not as said.
        NotImplementedError: if `backend` cannot run here.
    """
    _check_maps("images", images, False)
    floats("kernel", kernel)
    same("kernel", kernel, "images", images)
    channels, (height, width) = images.shape[1], images.shape[2:]
    if channels > MOST_IMAGE_CHANNELS:
        raise ValueError(f"images must have at most {MOST_IMAGE_CHANNELS} channels, got {channels}")
    if kernel.ndim != 4 or kernel.shape[1:] != (channels, 3, 3):
        raise ValueError(f"kernel must have shape (C, {channels}, 3, 3), got {tuple(kernel.shape)}")
    if padding < 0 or min(height, width) + 2 * padding < 4:
        raise ValueError(f"padding must make 4x4 pixels or more of {height}x{width} images, got {padding}")
    _check_affine(weight, bias, images, kernel.shape[0])
    if _needs_grad(kernel, weight, bias):
        raise ValueError("kernel, weight and bias must not require a gradient, got one that does")
    needs_grad = _needs_grad(images)
    out, *_ = applied(ConvBlock, _dense(images), kernel.contiguous(), weight, bias, padding, eps, needs_grad, backend)
    return out


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(it is not None and it.requires_grad for it in tensors)


def _dense(x: Tensor) -> Tensor:
    """Copied only if it lies in neither memory format."""
    return _laid(x, x)


def _laid(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the memory format of `like`."""
    return x.contiguous(memory_format=layout(like))


def _check_maps(name: str, x: Tensor, pool: bool) -> None:
    floats(name, x)
    if x.ndim != 4:
        raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(x.shape)}")
    if pool and min(x.shape[2:]) < 2:
        raise ValueError(f"{name} must have 2x2 pixels or more for pool, got {tuple(x.shape)}")


def _check_affine(weight: Tensor | None, bias: Tensor | None, x: Tensor, channels: int) -> None:
    if weight is None or bias is None:
        if weight is not bias:
            raise ValueError("weight and bias must be given together, got one of them")
        return
    for name, parameter in (("weight", weight), ("bias", bias)):
        floats(name, parameter)
        same(name, parameter, "the maps", x, dtype=False)
        if parameter.dtype not in (x.dtype, accumulator(x.dtype)) or parameter.dtype != weight.dtype:
            allowed = " or ".join(dict.fromkeys(map(str, (x.dtype, accumulator(x.dtype)))))
            raise TypeError(f"{name} must be {allowed}, as weight and bias alike, got {parameter.dtype}")
        if parameter.shape != (channels,):
            raise ValueError(f"{name} must have shape ({channels},), got {tuple(parameter.shape)}")
