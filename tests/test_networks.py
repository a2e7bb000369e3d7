"""The networks: shapes, parameters, weights, and that an image's features are its own."""

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfast.networks import NETWORKS, VGG11, AlexNet, ConvNet, Network, ResNet18, build, draw_weights
from ddfast.networks.norm import normalization

# PyTorch 2.13 corrupts memory on some CPUs in the gradient of a strided 1x1 convolution of 4 channels, channels_last.
SMALL = {"convnet": 8, "alexnet": 8, "vgg11": 4, "resnet18": 8}
CHAINS = {"alexnet": AlexNet, "vgg11": VGG11}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(
    name: str, channels: int = 3, size: tuple[int, int] = (16, 16), norm: str | None = "instance", **keys: str
) -> Network:
    return build(
        name,
        channels=channels,
        num_classes=5,
        size=size,
        width=SMALL[name],
        norm=norm,
        **keys,
        device="cpu",
        generator=generator(),
    )


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(n, channels, height, width, generator=generator(7))


@pytest.mark.parametrize(
    ("channels", "height", "width", "depth", "embedded"),
    [
        (1, 8, 8, 3, (1, 1)),
        (1, 8, 8, 2, (3, 3)),
        (3, 8, 8, 3, (1, 1)),
        (1, 28, 28, 3, (4, 4)),
        (3, 32, 32, 3, (4, 4)),
        (3, 64, 64, 3, (8, 8)),
        (3, 64, 64, 4, (4, 4)),
        (3, 32, 17, 3, (4, 2)),
    ],
)
def test_convnet_shapes(channels: int, height: int, width: int, depth: int, embedded: tuple[int, int]) -> None:
    network = ConvNet(channels, 10, (height, width), width=6, depth=depth)
    x = images(2, channels, height, width)
    assert network.embed(x).shape == (2, 6, *embedded)
    assert torch.equal(network.features(x), network.embed(x).flatten(1))
    assert network(x).shape == (2, 10)
    assert torch.equal(network(x), network.head(network.features(x)))


@pytest.mark.parametrize(
    ("channels", "height", "width", "embedded", "pooled"),
    [
        (1, 8, 8, (2, 2), 1),
        (1, 28, 28, (4, 4), 1),
        (3, 32, 32, (4, 4), 1),
        (3, 64, 64, (8, 8), 4),
        (3, 17, 64, (3, 8), 2),
    ],
)
def test_resnet_shapes(channels: int, height: int, width: int, embedded: tuple[int, int], pooled: int) -> None:
    network = ResNet18(channels, 10, (height, width), width=4)
    x = images(2, channels, height, width)
    assert network.embed(x).shape == (2, 32, *embedded)
    assert network.features(x).shape == (2, 32 * pooled)
    assert network(x).shape == (2, 10)
    assert torch.equal(network(x), network.head(network.features(x)))


def test_resnet_features_are_4x4_means() -> None:
    network = ResNet18(3, 10, (64, 64), width=4)
    x = images(2, 3, 64, 64)
    quadrants = network.embed(x).unflatten(3, (2, 4)).unflatten(2, (2, 4))
    torch.testing.assert_close(network.features(x), quadrants.mean((3, 5)).flatten(1))


@pytest.mark.parametrize(
    ("name", "channels", "size", "embedded"),
    [
        ("alexnet", 3, (32, 32), (4, 4)),
        ("alexnet", 1, (28, 28), (4, 4)),
        ("alexnet", 3, (28, 28), (4, 4)),
        ("alexnet", 1, (8, 8), (2, 2)),
        ("alexnet", 3, (8, 8), (1, 1)),
        ("alexnet", 3, (3, 3), (1, 1)),
        ("alexnet", 3, (64, 64), (8, 8)),
        ("alexnet", 3, (96, 96), (6, 6)),
        ("alexnet", 3, (128, 128), (8, 8)),
        ("alexnet", 3, (224, 224), (7, 7)),
        ("alexnet", 3, (32, 17), (4, 3)),
        ("vgg11", 3, (32, 32), (1, 1)),
        ("vgg11", 1, (28, 28), (1, 1)),
        ("vgg11", 1, (8, 8), (1, 1)),
        ("vgg11", 3, (8, 8), (1, 1)),
        ("vgg11", 3, (64, 64), (2, 2)),
        ("vgg11", 3, (224, 224), (7, 7)),
        ("vgg11", 3, (64, 17), (2, 1)),
    ],
    ids=str,
)
def test_chain_shapes(name: str, channels: int, size: tuple[int, int], embedded: tuple[int, int]) -> None:
    network = CHAINS[name](channels, 10, size, width=4)
    x = images(2, channels, *size)
    assert network.embed(x).shape == (2, {"alexnet": 6, "vgg11": 32}[name], *embedded)
    assert torch.equal(network.features(x), network.embed(x).flatten(1))
    assert network(x).shape == (2, 10)


@pytest.mark.parametrize(("pooling", "extent"), [("avg", 4), ("max", 4), ("none", 32)])
def test_convnet_poolings(pooling: str, extent: int) -> None:
    network = ConvNet(1, 10, (28, 28), width=4, pooling=pooling)
    x = images(2, 1, 28, 28)
    assert network.embed(x).shape == (2, 4, extent, extent)
    assert network(x).shape == (2, 10)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_sizes() -> None:
    convolutions = (3 * 9 + 1) * 128 + 2 * (128 * 9 + 1) * 128
    assert parameters(ConvNet(3, 10, (32, 32))) == convolutions + 3 * 2 * 128 + (2048 + 1) * 10 == 320_010
    with torch.device("meta"):
        resnet, large = ResNet18(3, 10, (32, 32)), ResNet18(3, 200, (64, 64))
    with torch.device("meta"):
        alexnet, vgg, original = AlexNet(3, 10, (32, 32)), VGG11(3, 10, (32, 32)), VGG11(3, 10, (224, 224))
    sizes = ((3, 5, 128), (128, 5, 192), (192, 3, 256), (256, 3, 192), (192, 3, 192))
    convolutions = sum((before * kernel**2 + 1) * after for before, kernel, after in sizes)
    assert parameters(alexnet) == convolutions + (192 * 4 * 4 + 1) * 10 == 1_872_202
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convolutions = sum((before * 9 + 1) * after for before, after in itertools.pairwise(widths))
    assert parameters(vgg) == convolutions + 2 * sum(widths[1:]) + (512 + 1) * 10 == 9_231_114
    assert original.head.in_features == 512 * 7 * 7
    assert parameters(resnet) == 11_173_962
    assert (resnet.head.in_features, large.head.in_features) == (512, 2048)


@pytest.mark.parametrize("size", [(8, 8), (28, 28)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_small_images_are_alive(name: str, channels: int, size: tuple[int, int]) -> None:
    network = small(name, channels, size)
    x = images(6, channels, *size).requires_grad_()
    features = network.features(x)
    assert (features.std(0) > 0.01).float().mean() > 0.5
    (gradient,) = torch.autograd.grad(features, x, torch.randn(features.shape, generator=generator(8)))
    assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()
    assert network.features(x[:1]).shape == (1, features.shape[1])


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_depend_on_neither_mode_nor_batch(name: str, norm: str) -> None:
    network = small(name, norm=norm)
    x = images(5, 3, 16, 16)
    features = network.train().features(x)
    assert torch.equal(features, network.eval().features(x))
    torch.testing.assert_close(network.features(x[2:4]), features[2:4])


def test_norms() -> None:
    x = images(3, 8, 5, 5) * 3 + 2
    groups = {"instance": 8, "group": 4, "layer": 1}
    for norm, count in groups.items():
        layer = normalization(norm, 8)
        grouped = x.view(3, count, -1)
        expected = (grouped - grouped.mean(-1, keepdim=True)) / grouped.std(-1, keepdim=True, correction=0)
        torch.testing.assert_close(layer(x), expected.view_as(x), rtol=1e-4, atol=1e-4)
        assert [parameter.shape for parameter in layer.parameters()] == [(8,), (8,)]
    assert normalization("none", 8)(x) is x


def test_convnet_block_step_by_step() -> None:
    block = small("convnet").blocks[0]
    x = images(2, 3, 16, 16)
    rectified = F.instance_norm(block.convolution(x)).clamp(min=0)
    pooled = rectified.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5))
    torch.testing.assert_close(block(x), pooled)


ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "leakyrelu": lambda x: torch.where(x < 0, 0.01 * x, x),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}
POOLINGS = {"avg": lambda cells: cells.mean((3, 5)), "max": lambda cells: cells.amax((3, 5))}


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convnet_variants_step_by_step(activation: str, pooling: str, norm: str) -> None:
    network = small("convnet", norm=norm, activation=activation, pooling=pooling)
    x = y = images(2, 3, 16, 16)
    for block in network.blocks:
        y = block.convolution(y)
        y = ACTIVATIONS[activation](F.instance_norm(y) if norm == "instance" else y)
        if pooling != "none":
            y = POOLINGS[pooling](y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)))
    torch.testing.assert_close(network.embed(x), y)


@pytest.mark.parametrize("name", CHAINS)
def test_chains_step_by_step(name: str) -> None:
    """The field's layers, written out; P is a pool."""
    plan = {"alexnet": "55P5P333P", "vgg11": "3P3P33P33P33P"}[name].removeprefix("5" if name == "alexnet" else "")
    network = small(name, size=(32, 32), norm="none")
    layers = [layer for layer in network.layers if not isinstance(layer, nn.MaxPool2d)]
    x = y = images(2, 3, 32, 32)
    for step in plan:
        if step == "P":
            y = y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
            continue
        convolution = layers.pop(0).convolution
        y = F.conv2d(y, convolution.weight, convolution.bias, padding=int(step) // 2).clamp(min=0)
    assert not layers
    torch.testing.assert_close(network.embed(x), y)


def test_resnet_step_by_step() -> None:
    network = small("resnet18").double()
    x = images(2, 3, 16, 16).double()
    first, _, halving, *_ = network.blocks
    y = F.instance_norm(network.stem(x)).clamp(min=0)
    torch.testing.assert_close(network.embed(x), network.blocks(y))
    for block, shortcut in ((first, y), (halving, F.instance_norm(halving.shortcut[0](y)))):
        inner = F.instance_norm(block.convolution1(y)).clamp(min=0)
        inner = F.instance_norm(block.convolution2(inner))
        torch.testing.assert_close(block(y), (inner + shortcut).clamp(min=0))
    assert halving(y).shape == (2, 2 * SMALL["resnet18"], 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_have_pytorchs_default_distribution(name: str) -> None:
    network = build(name, channels=3, num_classes=100, size=(32, 32), width=32, device="cpu", generator=generator())
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in fresh.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm):
                layer.reset_parameters()
    for layer, default in zip(network.modules(), fresh.modules(), strict=True):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            for drawn, expected in zip(layer.parameters(recurse=False), default.parameters(recurse=False), strict=True):
                assert_uniform(drawn.detach(), 1 / math.sqrt(fan_in))
                assert_uniform(expected.detach(), 1 / math.sqrt(fan_in))
        elif isinstance(layer, nn.GroupNorm):
            assert torch.equal(layer.weight, default.weight)
            assert torch.equal(layer.bias, default.bias)


def assert_uniform(weights: Tensor, bound: float) -> None:
    """Bounds and moments within 5 standard errors."""
    n = weights.numel()
    assert bound * (1 - 10 / n) < weights.abs().max() <= bound * (1 + 1e-6)
    assert abs(weights.mean()) < 5 * bound / math.sqrt(3 * n)
    assert float(weights.square().mean()) == pytest.approx(bound**2 / 3, rel=4.5 / math.sqrt(n))
    assert float(weights.pow(4).mean()) == pytest.approx(bound**4 / 5, rel=6.7 / math.sqrt(n))


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_generators_give_equal_weights(name: str) -> None:
    network, twin = small(name), small(name)
    first = {key: value.clone() for key, value in network.state_dict().items()}
    storage = [parameter.data_ptr() for parameter in network.parameters()]
    assert_equal_states(first, twin.state_dict())

    draw_weights(network, generator(1))
    assert [parameter.data_ptr() for parameter in network.parameters()] == storage
    for key, value in network.state_dict().items():
        assert torch.equal(value, first[key]) == ("norm" in key or "shortcut.1" in key)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    draw_weights(network, generator())
    assert_equal_states(network.state_dict(), first)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())


def assert_equal_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_global_generator_is_untouched(name: str) -> None:
    before = torch.get_rng_state()
    draw_weights(small(name), generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize("name", [*NETWORKS, "variant"])
def test_config_round_trip(name: str, norm: str) -> None:
    variant = {"activation": "leakyrelu", "pooling": "max"} if name == "variant" else {}
    network = small("convnet" if variant else name, 1, (28, 20), norm, **variant)
    config = json.loads(json.dumps(network.config))
    assert config == network.config
    again = build(**config, device="cpu", generator=generator(9))
    assert again.config == config
    again.load_state_dict(network.state_dict())
    x = images(2, 1, 28, 20)
    assert torch.equal(again(x), network(x))


def test_defaults() -> None:
    arguments = {"channels": 3, "num_classes": 10, "size": (32, 32), "device": "cpu", "generator": generator()}
    own = {name: build(name, **arguments).config for name in NETWORKS}
    assert [own["convnet"][key] for key in ("width", "depth", "norm")] == [128, 3, "instance"]
    assert [own["convnet"][key] for key in ("activation", "pooling")] == ["relu", "avg"]
    assert (own["alexnet"]["width"], own["alexnet"]["norm"]) == (128, "none")
    for name in ("vgg11", "resnet18"):
        assert (own[name]["width"], own[name]["norm"]) == (64, "instance")
    assert build("convnet", **arguments, depth=4).features(images(1, 3, 32, 32)).shape == (1, 128 * 4)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"batch.*the features of an image would depend on the chunk"):
        small("convnet", norm="batch")
    with pytest.raises(ValueError, match="norm must be one of instance, group, layer, none, got 'instnace'"):
        small("resnet18", norm="instnace")
    with pytest.raises(ValueError, match="width must be a multiple of 4 for norm 'group', got 6"):
        ConvNet(3, 10, (8, 8), width=6, norm="group")
    with pytest.raises(ValueError, match="depth must leave at least one pixel of 8x8 images, got 4"):
        ConvNet(3, 10, (8, 8), depth=4)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ResNet18(3, 0, (8, 8))
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        ConvNet(3, 10, (8, 8), depth=0)
    arguments = {"channels": 3, "num_classes": 10, "size": (32, 32), "device": "cpu", "generator": generator()}
    with pytest.raises(ValueError, match=r"no network 'resnet', only convnet, .*, resnet18; did you mean resnet18"):
        build("resnet", **arguments)
    for name in ("alexnet", "vgg11", "resnet18"):
        for key, value in {"depth": 3, "activation": "relu", "pooling": "max"}.items():
            with pytest.raises(ValueError, match=f"{key} must be None for {name}, got {value!r}"):
                build(name, **arguments, **{key: value})
    with pytest.raises(ValueError, match="activation must be one of relu, leakyrelu, sigmoid, got 'swish'"):
        small("convnet", activation="swish")
    with pytest.raises(ValueError, match="pooling must be one of avg, max, none, got 'mean'"):
        small("convnet", pooling="mean")
    with pytest.raises(TypeError, match=r"network must hold .* got BatchNorm2d"):
        draw_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), generator())


@pytest.mark.parametrize(
    ("name", "keys"),
    [*((name, {}) for name in NETWORKS), ("convnet", {"activation": "leakyrelu", "pooling": "max"})],
    ids=str,
)
def test_learns_a_handful_of_images(name: str, keys: dict[str, str]) -> None:
    network = small(name, norm=None, **keys)
    x, labels = images(10, 3, 16, 16), torch.arange(10) % 5
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        loss = F.cross_entropy(network(x), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if losses[-1] < 0.1:
            break
    assert losses[0] > 1
    assert losses[-1] < 0.1
    assert (network(x).argmax(1) == labels).all()
