"""The ConvNet on which data set distillation is measured."""

import torch.nn.functional as F
from torch import Tensor, nn

from ddfast.errors import UserError
from ddfast.networks.network import Network
from ddfast.networks.norm import normalization


class Block(nn.Module):
    """3x3 convolution, norm, ReLU and 2x2 average pool: (N, channels, H, W) -> (N, width, h, w)."""

    def __init__(self, channels: int, width: int, padding: int, norm: str) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=padding)
        self.norm = normalization(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.norm(self.convolution(x)), inplace=True), 2)


class ConvNet(Network):
    """`depth` blocks and a linear head, as in Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021.

    The penultimate features are the flattened map. One-channel images get 2 more pixels on every side, which makes 28
    x 28 into 32 x 32.

    Args:
        channels: of the images.
        num_classes: of the logits.
        size: (H, W) of the images, in pixels.
        width: the channels of every block.
        depth: the number of blocks, each of which halves the map.
        norm: "instance", "group" (4 groups), "layer" or "none".

    Raises:
        UserError: if `depth` leaves no pixel, a number is below 1, or `norm` is none of these.
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
    ) -> None:
        super().__init__(
            "convnet", size=size, norm=norm, channels=channels, num_classes=num_classes, width=width, depth=depth
        )
        padding = 3 if channels == 1 else 1
        map_height, map_width = ((extent + 2 * padding - 2) >> depth for extent in size)
        if not map_height or not map_width:
            raise UserError(f"convnet: depth must leave at least one pixel of {size[0]}x{size[1]} images, got {depth}")
        self.blocks = nn.Sequential(
            Block(channels, width, padding, norm), *(Block(width, width, 1, norm) for _ in range(depth - 1))
        )
        self.head = nn.Linear(width * map_height * map_width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.blocks(x)
