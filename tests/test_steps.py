"""A step for all classes, and a sweep of steps, against torch.optim.SGD."""

import pytest
import torch
from torch import Tensor

from ddfast.distill.config import Config
from ddfast.distill.steps import ImageSGD

CPU = torch.device("cpu")
SHAPE = (2, 1, 3, 2)  # of a class


def loss_of(images: Tensor, k: int) -> Tensor:
    """Of the images of class k, with a gradient that depends on where they are."""
    return (1 + k * images).sin().prod(-1).sum() + (images - k).square().sum().sqrt()


def start(classes: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.randn(2, classes, *SHAPE, generator=torch.Generator().manual_seed(classes), dtype=dtype))


@pytest.mark.parametrize("chunk", [1, 2, 99])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_a_sweep_is_sgd_over_one_tensor_class_by_class(classes: int, momentum: float, chunk: int) -> None:
    images, held = start(classes)
    plain = images.clone().requires_grad_()
    sgd = torch.optim.SGD([plain], lr=0.1, momentum=momentum)
    sgd.state[plain]["momentum_buffer"] = held.clone()
    ours = ImageSGD(Config(method="idm", image_lr=0.1, image_momentum=momentum), classes, CPU)
    for _ in range(4):
        for k in range(classes):
            sgd.zero_grad(set_to_none=False)
            loss_of(plain[k], k).backward()
            sgd.step()
        for part in torch.arange(classes).split(chunk):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            ahead = ours.ahead(images[rows], held[rows], part).requires_grad_()
            sum(loss_of(own, int(k)) for own, k in zip(ahead, part, strict=True)).backward()
            ours.take(images[rows], held[rows], ahead.grad, part)
        torch.testing.assert_close(images, plain.detach(), rtol=1e-11, atol=1e-11)
        if momentum:  # without it PyTorch holds nothing
            torch.testing.assert_close(held, sgd.state[plain]["momentum_buffer"], rtol=1e-11, atol=1e-11)


def test_early_classes_go_further() -> None:
    """Up to twice as far, for their momentum carries them while the others step."""
    ours = ImageSGD(Config(method="idm", image_lr=1.0, image_momentum=0.5), 10, CPU)
    images = torch.zeros(10, *SHAPE)
    ours.take(images, torch.zeros_like(images), torch.ones_like(images), torch.arange(10))
    assert -images[:, 0, 0, 0, 0] == pytest.approx([2 - 2.0 ** (k - 9) for k in range(10)])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_all_classes_at_once_are_one_plain_step_to_the_last_bit(momentum: float) -> None:
    images, held = start(4, torch.float32)
    gradient = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    expected = held.clone().mul_(momentum).add_(gradient)
    moved = images.clone().sub_(expected, alpha=0.3)
    ours = ImageSGD(Config(image_lr=0.3, image_momentum=momentum), 4, CPU)
    assert torch.equal(ours.ahead(images, held, torch.arange(4)), images)
    ours.take(images, held, gradient, torch.arange(4))
    assert torch.equal(images, moved)
    assert torch.equal(held, expected)
