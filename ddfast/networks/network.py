"""What every network of the package offers, whatever its architecture."""

from typing import Any

import torch
from torch import Tensor, nn

from ddfast.errors import UserError


class Network(nn.Module):
    """Maps images (N, C, H, W) to a feature map, to penultimate features and to logits.

    An image's outputs depend on that image alone, in train and in eval mode alike: there is neither batch norm nor
    dropout. A batch of few images may be convolved another way, which rounds otherwise.

    Attributes:
        config: the arguments, JSON-able, with which `build` makes this architecture again.
        fused: whether blocks run as fused operators, which can be differentiated once.
        layout: the memory format of kernels and maps.
        head: the linear classifier on the penultimate features.
    """

    config: dict[str, Any]
    fused: bool
    layout: torch.memory_format = torch.contiguous_format
    head: nn.Linear

    def __init__(self, name: str, *, size: tuple[int, int], fused: bool, **arguments: int | str) -> None:
        super().__init__()
        height, width = size
        for argument, value in (("height", height), ("width", width), *arguments.items()):
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name}: {argument} must be at least 1, got {value}")
        self.config = {"name": name, "size": [height, width], **arguments}
        self.fused = fused

    def lay(self, layout: torch.memory_format) -> None:
        """Puts kernels, and from now on maps, into that memory format; rounding aside, nothing else changes."""
        self.layout = layout
        nn.utils.convert_conv2d_weight_memory_format(self, layout)

    def laid(self, x: Tensor) -> Tensor:
        """Images as they go in."""
        return x.contiguous(memory_format=self.layout)

    def embed(self, x: Tensor) -> Tensor:
        """The last feature map, (N, C, H, W) -> (N, width, h, w): what DM and covariance matching compare."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """The penultimate features, (N, C, H, W) -> (N, E)."""
        return self.pooled(self.embed(x))

    def pooled(self, maps: Tensor) -> Tensor:
        """The penultimate features of feature maps, (N, width, h, w) -> (N, E)."""
        return maps.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """The logits, (N, C, H, W) -> (N, num_classes)."""
        return self.head(self.features(x))
