"""The operators that networks are made of: what each takes and returns, as schemas and as fakes.

    norm_block            instance norm [+ residual] [ReLU] [2x2 average pool]
    norm_block_backward   its gradients
    conv_block            3x3 convolution of images, instance norm, ReLU, 2x2 average pool; for frozen weights
    conv_block_backward   its gradient to the images

Instance norm is of each image and channel over its pixels: (x − mean)·rstd·weight + bias, rstd = 1 / sqrt(variance +
eps) of the biased variance. The pool drops an odd last row or column. Maps (N, C, H, W) lie contiguously, NCHW or
channels_last, and what comes out lies like what went in; weight and bias (C,) have the dtype of the map or of its
accumulator. `mean` and `rstd` (N, C) are what backward needs, with the input: the map before the ReLU is never kept,
and that of a convolution of images never written. Empty, (0,), is what nobody asked for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddfast.operators.schemas import accumulator

AFFINE = "Tensor? weight, Tensor? bias"
STATISTICS = "Tensor mean, Tensor rstd"

SIGNATURES = {
    "norm_block": f"(Tensor x, {AFFINE}, Tensor? residual, float eps, bool relu, bool pool, bool needs_grad)"
    f" -> (Tensor out, {STATISTICS})",
    "norm_block_backward": f"(Tensor grad, Tensor x, {AFFINE}, Tensor? residual, {STATISTICS}, bool relu, bool pool,"
    " bool affine_grad, bool residual_grad)"
    " -> (Tensor x_grad, Tensor weight_grad, Tensor bias_grad, Tensor residual_grad)",
    "conv_block": f"(Tensor images, Tensor kernel, {AFFINE}, SymInt padding, float eps, bool needs_grad)"
    f" -> (Tensor out, {STATISTICS})",
    "conv_block_backward": f"(Tensor grad, Tensor images, Tensor kernel, {AFFINE}, {STATISTICS}, SymInt padding)"
    " -> Tensor",
}


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of maps that lie contiguously; one of one channel may lie in either."""
    _, _, height, width = x.shape
    return torch.channels_last if x.stride(1) == 1 and height * width != 1 else torch.contiguous_format


def _statistics(x: Tensor, channels: int, needs_grad: bool) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], channels) if needs_grad else 0
    mean, rstd = (x.new_empty(shape, dtype=accumulator(x.dtype)) for _ in range(2))
    return mean, rstd


def _norm_block(x: Tensor, weight: Any, bias: Any, residual: Any, *rest: Any) -> Any:
    *_, pool, needs_grad = rest
    n, channels, height, width = x.shape
    shape = (n, channels, height // 2, width // 2) if pool else x.shape
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))
    return out, *_statistics(x, channels, needs_grad)


def _norm_block_backward(grad: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, *rest: Any) -> Any:
    *_, affine_grad, residual_grad = rest
    affine = [torch.empty_like(weight) if affine_grad else x.new_empty(0) for _ in range(2)]
    return torch.empty_like(x), *affine, torch.empty_like(x) if residual_grad else x.new_empty(0)


def _conv_block(images: Tensor, kernel: Tensor, weight: Any, bias: Any, padding: int, *rest: Any) -> Any:
    _, needs_grad = rest
    n, _, height, width = images.shape
    shape = (n, kernel.shape[0], (height + 2 * padding - 2) // 2, (width + 2 * padding - 2) // 2)
    out = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout(images))
    return out, *_statistics(images, kernel.shape[0], needs_grad)


def _conv_block_backward(grad: Tensor, images: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(images)


FAKES: dict[str, Callable[..., Any]] = {
    "norm_block": _norm_block,
    "norm_block_backward": _norm_block_backward,
    "conv_block": _conv_block,
    "conv_block_backward": _conv_block_backward,
}
