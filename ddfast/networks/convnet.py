"""The ConvNet on which data set distillation is measured, and the variants of it that the field has."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfast.errors import UserError
from ddfast.networks.convolution import convolved
from ddfast.networks.network import Network
from ddfast.networks.norm import is_instance_norm, normalization, normalized
from ddfast.operators import conv_block
from ddfast.operators.blocks import MOST_IMAGE_CHANNELS
from ddfast.operators.conv_paths import conv_path

_Step = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, _Step] = {"relu": F.relu, "leakyrelu": F.leaky_relu, "sigmoid": torch.sigmoid}
_POOLINGS: dict[str, _Step] = {
    "avg": partial(F.avg_pool2d, kernel_size=2),
    "max": partial(F.max_pool2d, kernel_size=2),
    "none": lambda x: x,
}


class Block(nn.Module):
    """3x3 convolution, norm, activation and 2x2 pool: (N, channels, H, W) -> (N, width, h, w)."""

    def __init__(
        self, channels: int, width: int, padding: int, norm: str, activation: str, pooling: str, fused: bool
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=padding)
        self.norm = normalization(norm, width)
        self.activation, self.pooling, self.fused = activation, pooling, fused

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self.convolution, self.norm
        relu = self.activation == "relu"
        averaged = relu and self.pooling == "avg"
        if averaged and self.fused and is_instance_norm(norm) and self._reads_images(x) and not self._trains():
            padding = int(convolution.padding[0])
            if x.is_cuda and conv_path("conv_block", x, convolution.weight, padding) == "plain":
                return normalized(norm, convolution(x), relu=True, pool=True, fused=True)
            return conv_block(x, convolution.weight, norm.weight, norm.bias, padding=padding, eps=norm.eps)
        x = convolved(convolution, x, fused=self.fused)
        x = normalized(norm, x, relu=relu, pool=averaged, fused=self.fused)
        x = x if relu else _ACTIVATIONS[self.activation](x)
        return x if averaged else _POOLINGS[self.pooling](x)

    def _reads_images(self, x: Tensor) -> bool:
        return self.convolution.in_channels <= MOST_IMAGE_CHANNELS and x.dtype == self.convolution.weight.dtype

    def _trains(self) -> bool:
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())


class ConvNet(Network):
    """`depth` blocks and a linear head, as in Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021.

    The penultimate features are the flattened map. One-channel images get 2 more pixels on every side, which makes 28
    x 28 into 32 x 32.

    Args:
        channels: of the images.
        num_classes: of the logits.
        size: (H, W) of the images, in pixels.
        width: the channels of every block.
        depth: the number of blocks, each of which halves the map unless `pooling` is "none".
        norm: "instance", "group" (4 groups), "layer" or "none".
        activation: "relu", "leakyrelu" (slope 0.01 below zero) or "sigmoid".
        pooling: "avg", "max" or "none".
        fused: a block's instance norm with the ReLU and average pool that follow in one pass, and a first block that
            has all of them without its map; features can be differentiated once, those of plain modules any number of
            times.

    Raises:
        UserError: if `depth` leaves no pixel, a number is below 1, or a word is none of these.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        size: tuple[int, int],
        *,
        width: int = 128,
        depth: int = 3,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
        fused: bool = True,
    ) -> None:
        numbers = {"channels": channels, "num_classes": num_classes, "width": width, "depth": depth}
        words = {"norm": norm, "activation": activation, "pooling": pooling}
        super().__init__("convnet", size=size, fused=fused, **numbers, **words)
        for argument, known in (("activation", _ACTIVATIONS), ("pooling", _POOLINGS)):
            if words[argument] not in known:
                raise UserError(f"{argument} must be one of {', '.join(known)}, got {words[argument]!r}")
        padding = 3 if channels == 1 else 1
        halvings = 0 if pooling == "none" else depth
        map_height, map_width = ((extent + 2 * padding - 2) >> halvings for extent in size)
        if not map_height or not map_width:
            raise UserError(f"convnet: depth must leave at least one pixel of {size[0]}x{size[1]} images, got {depth}")
        self.blocks = nn.Sequential(
            Block(channels, width, padding, **words, fused=fused),
            *(Block(width, width, 1, **words, fused=fused) for _ in range(depth - 1)),
        )
        self.head = nn.Linear(width * map_height * map_width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.blocks(self.laid(x))
