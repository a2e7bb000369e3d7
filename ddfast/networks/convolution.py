"""Convolutions as networks use them."""

from torch import Tensor, nn

from ddfast.operators import conv3x3
from ddfast.operators.convolution import pays


def convolved(convolution: nn.Conv2d, x: Tensor, *, fused: bool) -> Tensor:
    """convolution(x).

    fused: with fewer multiplications where that is faster; the result can then be differentiated once.
    """
    if fused and _is_same3x3(convolution) and pays(x, convolution.weight):
        return conv3x3(x, convolution.weight, convolution.bias)
    return convolution(x)


def _is_same3x3(convolution: nn.Conv2d) -> bool:
    """Whether it has 3x3 pixels, stride 1 and a margin that keeps the map's size."""
    return convolution.kernel_size == (3, 3) and convolution.stride == convolution.padding == (1, 1)
