"""The 3x3 convolution as an autograd function: without a gradient to its kernel it keeps no map."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ddfast.operators.backends import refusal
from ddfast.operators.first_order import BLOCKS, applied, first_order
from ddfast.operators.library import overload


class Conv3x3(torch.autograd.Function):
    """The gradient flows to `x`, `kernel` and `bias`, once."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, bias: Tensor | None, backend: str | None) -> Tensor:
        return overload("conv3x3", backend, x)(x, kernel, bias, False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, kernel, _, ctx.backend = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if kernel.requires_grad else None, kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        (x, kernel), (to_x, to_kernel, to_bias, _) = ctx.saved_tensors, ctx.needs_input_grad
        x_grad = kernel_grad = bias_grad = None
        with torch.no_grad():
            upstream = grad.contiguous(memory_format=torch.channels_last)
            if to_x:
                x_grad = overload("conv3x3", ctx.backend, grad)(upstream, kernel, None, True)
            if to_kernel:  # a sum over all pixels: no fewer multiplications at Winograd's points than without them
                kernel_grad = conv2d_weight(x, kernel.shape, upstream, padding=1)
            if to_bias:
                bias_grad = upstream.sum((0, 2, 3))
        return (
            *(
                it if it is None else first_order(it, grad, kernel, what=BLOCKS)
                for it in (x_grad, kernel_grad, bias_grad)
            ),
            None,
        )


def conv3x3(x: Tensor, kernel: Tensor, bias: Tensor | None, *, backend: str | None = None) -> Tensor:
    """A 3x3 convolution of stride 1 and padding 1, (N, C, H, W) -> (N, K, H, W), both channels_last.

    Args:
        x: channels_last, or it is copied; float32, bfloat16 or float16, multiplied and added up in float32.
        kernel: (K, C, 3, 3), C and K multiples of 16; channels_last like `x`.
        bias: (K,) or None.
        backend: None is the fastest that runs here.

    Raises:
        ValueError: if `backend` is unknown; NotImplementedError: if it cannot run here.
    """
    x, kernel = (it.contiguous(memory_format=torch.channels_last) for it in (x, kernel))
    return applied(Conv3x3, x, kernel, bias, backend)


def pays(x: Tensor, kernel: Tensor) -> bool:
    """Whether `conv3x3` is here for such maps and faster than PyTorch's convolution.

    The kernel is put into 4 times its memory first, which a few tiles of 4x4 pixels do not repay. Below 64 channels the
    sums are so short that PyTorch's have less than half the error.
    """
    images, _, height, width = x.shape
    tiles = images * ((height + 3) // 4) * ((width + 3) // 4)
    whole = x.dtype != torch.float64 and all(n >= 64 and n % 16 == 0 for n in kernel.shape[:2])
    return whole and min(height, width) > 2 and tiles >= 32 and refusal("cpp", "conv3x3", x.device) is None
