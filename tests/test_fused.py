"""Networks of fused blocks against the same networks of plain modules: what they run, how accurately, and once."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from tracing import Recorder

from ddfast.networks import NETWORKS, Network, build

LAYOUTS = [torch.contiguous_format, torch.channels_last]
WIDTH = {"convnet": 16, "alexnet": 16, "vgg11": 8, "resnet18": 8}
VARIANTS = [
    {"activation": activation, "pooling": pooling}
    for activation in ("relu", "leakyrelu", "sigmoid")
    for pooling in ("avg", "max", "none")
]


def pair(name: str, **keys: Any) -> tuple[Network, Network]:
    """The network fused and plain, with the same weights."""
    keys = {"channels": 3, "num_classes": 5, "size": (16, 16), "width": WIDTH[name], "norm": "instance", **keys}
    networks = [
        build(name, **keys, fused=fused, device="cpu", generator=torch.Generator().manual_seed(0))
        for fused in (True, False)
    ]
    return networks[0], networks[1]


def images(n: int = 6, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def differentiate(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding, and the gradient to the images of a fixed function of it."""
    leaf = x.detach().requires_grad_()
    embedded = network.embed(leaf)
    pull = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(2)).to(embedded.dtype)
    (gradient,) = torch.autograd.grad(embedded, leaf, pull)
    return embedded.detach(), gradient


def calls(network: Network, x: Tensor) -> list[str]:
    with Recorder() as recorder:
        network.embed(x)
    return [overload._opname for overload, _ in recorder.calls]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_plain_modules(name: str, frozen: bool, channels: int, layout: torch.memory_format) -> None:
    fused, plain = (it.double().requires_grad_(not frozen) for it in pair(name, channels=channels))
    x = images(channels=channels).double().contiguous(memory_format=layout)
    for one, other in zip(differentiate(fused, x), differentiate(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    if not frozen:
        for network in (fused, plain):
            network(x).square().sum().backward()
        for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("keys", VARIANTS, ids=str)
def test_variants_equal_plain_modules(keys: dict[str, str]) -> None:
    fused, plain = (it.double().requires_grad_(False) for it in pair("convnet", **keys))
    x = images().double()
    for one, other in zip(differentiate(fused, x), differentiate(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    whole = keys == {"activation": "relu", "pooling": "avg"}
    assert calls(fused, x) == ["conv_block" if whole else "norm_block", "norm_block", "norm_block"]
    assert calls(plain, x) == []


def test_what_runs() -> None:
    """The first block as a whole where no weight of it is trained, and nothing of ours in plain networks."""
    fused, plain = pair("convnet")
    x = images()
    assert calls(fused, x) == ["norm_block"] * 3
    with torch.no_grad():
        assert calls(fused, x) == ["conv_block", "norm_block", "norm_block"]
    fused.requires_grad_(False)
    assert calls(fused, x.requires_grad_()) == ["conv_block", "norm_block", "norm_block"]
    fused.blocks[0].convolution.bias.requires_grad_()
    assert calls(fused, x) == ["norm_block"] * 3
    assert calls(plain, x) == []
    wide, plain = pair("convnet", width=64, size=(32, 32))
    with torch.no_grad():
        assert calls(wide, images(8, size=32)) == ["conv_block", *2 * ["conv3x3", "norm_block"]]
        assert calls(plain, images(8, size=32)) == []
    many, _ = pair("convnet", channels=5)
    with torch.no_grad():
        assert calls(many, images(channels=5)) == ["norm_block"] * 3
    for name, layers in (("alexnet", 5), ("vgg11", 8), ("resnet18", 20)):
        fused, plain = pair(name)
        assert calls(fused, x) == ["norm_block"] * layers
        assert calls(plain, x) == []
    alexnet, _ = pair("alexnet", norm=None, width=128, size=(32, 32))
    with torch.no_grad():
        assert calls(alexnet, images(8, size=32)) == ["conv3x3"] * 3


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_norms_are_plain(name: str, norm: str) -> None:
    fused, plain = (it.double() for it in pair(name, norm=norm))
    x = images().double()
    assert calls(fused, x) == []
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_architecture(name: str) -> None:
    fused, plain = pair(name)
    assert fused.config == plain.config
    assert fused.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(fused.state_dict())
    twin = copy.deepcopy(fused)
    assert torch.equal(twin(images()), fused(images()))


@pytest.mark.parametrize("name", NETWORKS)
def test_only_plain_modules_are_differentiated_twice(name: str) -> None:
    for network, twice in zip(pair(name), (False, True), strict=True):
        x = images().requires_grad_()
        (gradient,) = torch.autograd.grad(network.embed(x).square().sum(), x, create_graph=True)
        if twice:
            assert torch.autograd.grad(gradient.square().sum(), x)[0].isfinite().all()
        else:
            with pytest.raises(RuntimeError, match="built with fused=False"):
                gradient.square().sum().backward()


def test_autocast() -> None:
    fused, plain = pair("convnet")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for x in (images(), images().bfloat16()):
            torch.testing.assert_close(fused.embed(x).float(), plain.embed(x).float(), rtol=0.1, atol=0.1)


# Embedding: the largest error relative to the largest element. Gradient to the images: 1 − cosine, since a rounding
# decides on which side of a ReLU's kink a pixel is, and each that changes sides changes it by a finite amount.
ERRORS = {
    ("convnet", torch.float32): (2e-6, 1e-5),
    ("convnet", torch.bfloat16): (1e-2, 1e-2),
    ("convnet", torch.float16): (1e-3, 1e-3),
    ("alexnet", torch.float32): (2e-6, 1e-5),
    ("alexnet", torch.bfloat16): (1e-2, 2e-2),
    ("alexnet", torch.float16): (1e-3, 2e-3),
    ("vgg11", torch.float32): (5e-5, 1e-4),  # its last norms are over 2x2 pixels
    ("vgg11", torch.bfloat16): (2e-1, 2e-1),
    ("vgg11", torch.float16): (5e-2, 5e-2),
    ("resnet18", torch.float32): (1e-5, 1e-4),
    ("resnet18", torch.bfloat16): (6e-2, 1e-1),
    ("resnet18", torch.float16): (1e-2, 2e-2),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("name", "dtype"), ERRORS, ids=str)
def test_errors(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Of images and weights rounded to `dtype`; in the embedding never more than twice that of plain modules, which get
    them channels_last, as fused networks lie."""
    keys = {"size": (32, 32), "width": 4 * WIDTH[name], "norm": None}
    fused, plain = (it.to(dtype).requires_grad_(False) for it in pair(name, **keys))
    n = 12 if dtype == torch.float32 else 6  # the largest error of a few images is chance
    x = images(n, size=32).to(dtype).contiguous(memory_format=layout)
    embedded, gradient = differentiate(copy.deepcopy(plain).double(), x.double())

    def errors(network: Network, x: Tensor) -> tuple[float, float]:
        ours, our_gradient = differentiate(network, x)
        largest = (ours.double() - embedded).abs().max() / embedded.abs().max()
        cosine = torch.cosine_similarity(our_gradient.double().flatten(), gradient.flatten(), dim=0)
        return float(largest), float(1 - cosine)

    (ours, ours_of_gradient), (eager, _) = errors(fused, x), errors(plain, x.contiguous(memory_format=LAYOUTS[1]))
    allowed, allowed_of_gradient = ERRORS[name, dtype]
    assert ours <= min(allowed, 2 * eager)
    assert ours_of_gradient <= allowed_of_gradient
