"""The networks, by name, and the random weights that data set distillation draws for them over and over."""

import difflib
from collections.abc import Callable

import torch
from torch import nn

from ddfast.errors import UserError
from ddfast.networks.chain import VGG11, AlexNet
from ddfast.networks.convnet import ConvNet
from ddfast.networks.network import Network
from ddfast.networks.resnet import ResNet18

__all__ = ["NETWORKS", "VGG11", "AlexNet", "ConvNet", "Network", "ResNet18", "build", "draw_weights"]

_ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "convnet": ConvNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
}

NETWORKS = tuple(_ARCHITECTURES)


def build(
    name: str,
    *,
    channels: int,
    num_classes: int,
    size: tuple[int, int],
    width: int | None = None,
    depth: int | None = None,
    norm: str | None = None,
    activation: str | None = None,
    pooling: str | None = None,
    fused: bool = True,
    device: torch.device | str,
    generator: torch.Generator,
) -> Network:
    """A network on `device` with weights drawn by `draw_weights`; PyTorch's global generators stay untouched.

    `build(**network.config, device=device, generator=generator)` makes the architecture of `network` again.

    Args:
        name: one of NETWORKS.
        channels: of the images.
        num_classes: of the logits.
        size: (H, W) of the images, in pixels.
        width: None is the network's own, as in what follows.
        norm: "instance", "group" (4 groups), "layer" or "none".
        depth: of a ConvNet; no other network takes one, nor an activation or a pooling.
        activation: "relu", "leakyrelu" or "sigmoid".
        pooling: "avg", "max" or "none".
        fused: whether instance norms run in one pass with what follows them; False for a method that differentiates
            twice. It is not part of the architecture: `config` does not have it.
        device: where the weights lie.
        generator: on `device`.

    Raises:
        UserError: if `name` is unknown, or the network does not come with these arguments.
    """
    if name not in _ARCHITECTURES:
        near = difflib.get_close_matches(name.lower(), NETWORKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no network {name!r}, only {', '.join(NETWORKS)}{hint}")
    of_convnet = {"depth": depth, "activation": activation, "pooling": pooling}
    for key, value in of_convnet.items():
        if name != "convnet" and value is not None:
            raise UserError(f"{key} must be None for {name}, got {value!r}")
    given = {key: it for key, it in {"width": width, "norm": norm, **of_convnet}.items() if it is not None}
    with torch.device("meta"):  # no time and no random numbers for weights that draw_weights replaces
        network = _ARCHITECTURES[name](channels, num_classes, size, fused=fused, **given)
    network.to_empty(device=device)
    if fused and torch.device(device).type == "cpu":
        network.lay(torch.channels_last)  # convolutions are faster so, though plain norms are not
    draw_weights(network, generator)
    return network


@torch.no_grad()
def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Gives every parameter of `network` a fresh draw, in place, from PyTorch's default distributions.

    Weights and biases of convolutions and linear layers are uniform within ±1/sqrt(fan_in); norms get weight 1 and
    bias 0. Equal generators give equal weights; those of 16 bits are the float32 ones, rounded.

    Args:
        network: of Conv2d, Linear and GroupNorm layers.
        generator: on the device of the parameters.

    Raises:
        TypeError: if a layer of another kind has parameters.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters(recurse=False):
                wide = torch.promote_types(parameter.dtype, torch.float32)
                draw = torch.empty(parameter.shape, dtype=wide, device=parameter.device)
                parameter.copy_(draw.uniform_(-bound, bound, generator=generator))
        elif isinstance(layer, nn.GroupNorm):
            layer.reset_parameters()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"network must hold Conv2d, Linear and GroupNorm layers, got {type(layer).__name__}")
