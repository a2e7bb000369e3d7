"""AlexNet and VGG-11 for small images, the chains of convolutions and max pools that distilled images are tested on."""

from collections.abc import Sequence

from torch import Tensor, nn

from ddfast.networks.convolution import convolved
from ddfast.networks.network import Network
from ddfast.networks.norm import normalization, normalized

_POOL = None
_Layer = tuple[float, int] | None  # channels as a multiple of the network's width, and pixels of the kernel; or _POOL

_ALEXNET: Sequence[_Layer] = ((1, 5), _POOL, (1.5, 5), _POOL, (2, 3), (1.5, 3), (1.5, 3), _POOL)
_VGG11: Sequence[_Layer] = (
    *((1, 3), _POOL, (2, 3), _POOL, (4, 3), (4, 3), _POOL),
    *((8, 3), (8, 3), _POOL, (8, 3), (8, 3), _POOL),
)


class Layer(nn.Module):
    """Convolution, norm and ReLU: (N, channels, H, W) -> (N, width, h, w)."""

    def __init__(self, convolution: nn.Conv2d, norm: str, fused: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = normalization(norm, convolution.out_channels)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        return normalized(self.norm, convolved(self.convolution, x, fused=self.fused), fused=self.fused)


class Chain(Network):
    """Layers and 2x2 max pools one after the other, and a linear head on the flattened map.

    One-channel images get 2 more pixels on every side, which makes 28 x 28 into 32 x 32. A pool of an odd map keeps its
    last row and column. Only the last pool may leave a single pixel, of which instance norm would make a constant: a
    map too small for the others is not pooled any further.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[_Layer],
        channels: int,
        num_classes: int,
        size: tuple[int, int],
        *,
        stride: int,
        width: int,
        norm: str,
        fused: bool,
    ) -> None:
        super().__init__(
            name, size=size, fused=fused, channels=channels, num_classes=num_classes, width=width, norm=norm
        )
        modules: list[nn.Module] = []
        before, padding = channels, 2 if channels == 1 else 0
        extents = [extent + 2 * padding for extent in size]
        for number, layer in enumerate(layers):
            if layer is not _POOL:
                multiple, kernel = layer
                after = int(multiple * width)
                convolution = nn.Conv2d(before, after, kernel, stride, padding + kernel // 2)
                modules.append(Layer(convolution, norm, fused))
                extents = [-(-extent // stride) for extent in extents]
                before, padding, stride = after, 0, 1
            elif min(extents) > (1 if number == len(layers) - 1 else 2):
                modules.append(nn.MaxPool2d(2, ceil_mode=True))
                extents = [-(-extent // 2) for extent in extents]
        self.layers = nn.Sequential(*modules)
        self.head = nn.Linear(before * extents[0] * extents[1], num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.layers(self.laid(x))


class AlexNet(Chain):
    """AlexNet (Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012) as
    data set distillation has it: five convolutions, the first of stride 1, no norm, and a single linear layer.

    The penultimate features are the flattened map, an eighth of the image's size: 192 x 4 x 4 of 32 x 32 images, 192 x
    8 x 8 of 64 x 64. Beyond 64 pixels the first convolution takes steps of 2, beyond 128 of 4 as the original does,
    which makes 192 x 7 x 7 of 224 x 224.

    Args:
        channels: of the images.
        num_classes: of the logits.
        size: (H, W) of the images, in pixels.
        width: the channels of the first convolution; the others have 1.5, 2, 1.5 and 1.5 times as many.
        norm: "none" as published, "instance", "group" (4 groups) or "layer".
        fused: an instance norm and the ReLU in one pass, and fewer multiplications; features can be differentiated
            once, those of plain modules any number of times.

    Raises:
        UserError: if a number is below 1, or `norm` is none of these.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        size: tuple[int, int],
        *,
        width: int = 128,
        norm: str = "none",
        fused: bool = True,
    ) -> None:
        stride = 1 if max(size) <= 64 else 2 if max(size) <= 128 else 4
        super().__init__(
            "alexnet", _ALEXNET, channels, num_classes, size, stride=stride, width=width, norm=norm, fused=fused
        )


class VGG11(Chain):
    """VGG-11 (Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015)
    as data set distillation has it: instance norm after each of the eight convolutions, and a single linear layer.

    The penultimate features are the flattened map, a 32nd of the image's size: 512 of 32 x 32 images, 512 x 2 x 2 of 64
    x 64, and of 224 x 224 the original's 512 x 7 x 7.

    Args:
        channels: of the images.
        num_classes: of the logits.
        size: (H, W) of the images, in pixels.
        width: the channels of the first convolution; the others have 2, 4 (two of them) and 8 (four) times as many.
        norm: "instance", "group" (4 groups), "layer" or "none".
        fused: as of `AlexNet`.

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
        super().__init__("vgg11", _VGG11, channels, num_classes, size, stride=1, width=width, norm=norm, fused=fused)
