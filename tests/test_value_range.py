"""What floating point images are taken for, by the distribution of their values."""

import pytest
import torch
from torch import Tensor

from ddfast.data.value_range import value_range_of

MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.2, 0.2)


def pixels(kind: str = "photo") -> Tensor:
    """(40, 3, 16, 16) from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, 16, 16, generator=generator)
    return {"photo": x, "dark": x**4, "bright": 1 - x**8, "digits": (x > 0.8).float() * x}[kind]


def normalised(x: Tensor) -> Tensor:
    """By the statistics of the images themselves."""
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


@pytest.mark.parametrize("kind", ["photo", "dark", "bright", "digits"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, "0 to 1"),
        (lambda x: x * 1.02, "0 to 1"),
        (lambda x: x.index_put((torch.tensor(0),) * 4, torch.tensor(-1e-7)), "0 to 1"),
        (lambda x: 255 * x, "0 to 255"),
        (lambda x: (255 * x).index_put((torch.tensor(0),) * 4, torch.tensor(-1e-3)), "0 to 255"),
        (normalised, "normalised"),
        (lambda x: 50 * normalised(x), "normalised"),
    ],
    ids=["0 to 1", "overshoot", "one below 0", "0 to 255", "one below 0 of 255", "normalised", "far beyond"],
)
def test_pixels_and_normalised_images_are_told_apart(kind: str, change, expected: str) -> None:
    assert value_range_of(change(pixels(kind))) == expected


@pytest.mark.parametrize(
    "images",
    [2 * pixels() - 1, pixels() - 0.03, 8 * pixels(), 1000 * pixels()],
    ids=["-1 to 1", "some below 0", "0 to 8", "0 to 1000"],
)
def test_what_the_values_leave_open_is_left_open(images: Tensor) -> None:
    assert value_range_of(images) is None


def test_images_of_zeros_are_pixels() -> None:
    assert value_range_of(torch.zeros(2, 3, 4, 4)) == "0 to 1"
