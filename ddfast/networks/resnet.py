"""ResNet-18 for small images, the network whose penultimate features the complexity losses look at."""

from torch import Tensor, nn

from ddfast.networks.convolution import convolved
from ddfast.networks.network import Network
from ddfast.networks.norm import normalization, normalized


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, channels, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int, norm: str, fused: bool) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = normalization(norm, width)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = normalization(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if channels != width:
            convolution = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, normalization(norm, width))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        inner = normalized(self.norm1, convolved(self.convolution1, x, fused=self.fused), fused=self.fused)
        if isinstance(self.shortcut, nn.Sequential):
            convolution, norm = self.shortcut
            x = normalized(norm, convolution(x), relu=False, fused=self.fused)
        return normalized(self.norm2, convolved(self.convolution2, inner, fused=self.fused), x, fused=self.fused)


class ResNet18(Network):
    """ResNet-18 (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) with the CIFAR stem: a 3x3
    convolution of stride 1 and no max pool.

    The penultimate features are 4x4 averages of the last map, flattened: 512 of 32 x 32 images, 2,048 of 64 x 64; a
    smaller map is averaged as a whole. A map of two pixels or fewer is not halved any more, because instance norm makes
    a constant of a single pixel.

    Args:
        channels: of the images.
        num_classes: of the logits.
        size: (H, W) of the images, in pixels.
        width: the channels of the first of the four stages, each of which doubles them.
        norm: "instance", "group" (4 groups), "layer" or "none".
        fused: an instance norm with what follows it in one pass; features can be differentiated once, those of plain
            modules any number of times.

    Raises:
        UserError: if a number is below 1, or `norm` is none of these.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        size: tuple[int, int],
        *,
        width: int = 64,
        norm: str = "instance",
        fused: bool = True,
    ) -> None:
        super().__init__(
            "resnet18", size=size, fused=fused, channels=channels, num_classes=num_classes, width=width, norm=norm
        )
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = normalization(norm, width)
        height_of_map, width_of_map = size
        blocks = [BasicBlock(width, width, 1, norm, fused), BasicBlock(width, width, 1, norm, fused)]
        for _ in range(3):
            stride = 2 if min(height_of_map, width_of_map) > 2 else 1
            height_of_map, width_of_map = -(-height_of_map // stride), -(-width_of_map // stride)
            blocks += [
                BasicBlock(width, 2 * width, stride, norm, fused),
                BasicBlock(2 * width, 2 * width, 1, norm, fused),
            ]
            width *= 2
        self.blocks = nn.Sequential(*blocks)
        window = min(4, height_of_map), min(4, width_of_map)
        self.pool = nn.AvgPool2d(window)
        self.head = nn.Linear(width * (height_of_map // window[0]) * (width_of_map // window[1]), num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.blocks(normalized(self.norm, self.stem(self.laid(x)), fused=self.fused))

    def pooled(self, maps: Tensor) -> Tensor:
        return self.pool(maps).flatten(1)
