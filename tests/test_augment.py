"""`ddfast.augment` against the published formulas, written out image by image and pixel by pixel."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddfast import keyed
from ddfast.augment import DRAWS, STRATEGY, augment, augment_batch, parse_strategy

LARGEST = 0.99999994  # the float32 before 1
SIZES = [(3, 8, 8), (1, 9, 7), (3, 5, 12)]
EDGES = [(0.0, 0.0, 0.0), (LARGEST, LARGEST, LARGEST), (0.0, LARGEST, 0.5), (0.5, 0.0, LARGEST)]

unit = st.floats(0, 1, exclude_max=True, width=32)


def color(image: Tensor, u: list[float]) -> Tensor:
    image = image + (u[0] - 0.5)
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * (2 * u[1]) + grey
    mean = image.mean()
    return (image - mean) * (u[2] + 0.5) + mean


def crop(image: Tensor, u: list[float]) -> Tensor:
    _, height, width = image.shape
    furthest = [int(0.125 * size + 0.5) for size in (height, width)]
    down, right = (math.floor(u[axis] * (2 * furthest[axis] + 1)) - furthest[axis] for axis in (0, 1))
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i, j] = image[:, i + down, j + right]
    return out


def cutout(image: Tensor, u: list[float]) -> Tensor:
    covered = []
    for size, draw in zip(image.shape[1:], u, strict=False):
        side = int(0.5 * size + 0.5)
        last_centre = size if side % 2 == 0 else size - 1
        centre = math.floor(draw * (last_centre + 1))
        covered.append({i + centre - side // 2 for i in range(side)})
    out = image.clone()
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            if i in covered[0] and j in covered[1]:
                out[:, i, j] = 0
    return out


def flip(image: Tensor, u: list[float]) -> Tensor:
    return image[:, :, list(reversed(range(image.shape[2])))] if u[0] < 0.5 else image


def warp(image: Tensor, theta: list[list[float]]) -> Tensor:
    grid = F.affine_grid(torch.tensor([theta], dtype=image.dtype), [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def scale(image: Tensor, u: list[float]) -> Tensor:
    sx, sy = (draw * (1.2 - 1 / 1.2) + 1 / 1.2 for draw in u[:2])
    return warp(image, [[sx, 0, 0], [0, sy, 0]])


def rotate(image: Tensor, u: list[float]) -> Tensor:
    angle = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
    return warp(image, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


PUBLISHED = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def published(images: Tensor, draws: Tensor, strategy: tuple[str, ...]) -> Tensor:
    """(G, n, C, H, W): the same operation and parameters for the n images of a group."""
    groups = []
    for group, (first, *rest) in zip(images, draws.tolist(), strict=True):
        operation = PUBLISHED[strategy[math.floor(first * len(strategy))]]
        groups.append(torch.stack([operation(image, rest) for image in group]))
    return torch.stack(groups)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(groups: int, seed: int = 0) -> Tensor:
    return keyed.uniform(seed, 0, torch.arange(groups), "test", DRAWS)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", STRATEGY)
def test_each_operation_is_the_published_one(name: str, size: tuple[int, int, int]) -> None:
    draws = torch.cat((torch.tensor([(0.3, *edge) for edge in EDGES]), uniform(30)))
    images = normal(len(draws), 2, *size)
    torch.testing.assert_close(augment(images, draws, (name,)), published(images, draws, (name,)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=5), st.permutations(STRATEGY), st.integers(1, 6)
)
def test_mixed_operations_are_the_published_ones(
    rows: list[tuple[float, ...]], names: list[str], operations: int
) -> None:
    draws, strategy = torch.tensor(rows), tuple(names[:operations])
    images = normal(len(rows), 2, 3, 6, 7)
    torch.testing.assert_close(augment(images, draws, strategy), published(images, draws, strategy))


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_float32_is_as_accurate_as_float32_can_be(size: tuple[int, int, int]) -> None:
    draws = uniform(40)
    images = normal(40, 2, *size)
    torch.testing.assert_close(
        augment(images.float(), draws), augment(images, draws).float(), rtol=1e-5, atol=3e-5
    )  # bilinear sampling at 16 pixels from the centre: 16 float32 eps of position, times a slope of a few


def test_worked_examples() -> None:
    image = torch.arange(16.0).view(1, 1, 1, 4, 4) + 1

    def one(name: str, *u: float) -> list[list[float]]:
        return augment(image, torch.tensor([[0.0, *u]]), (name,))[0, 0, 0].tolist()

    shifted = [[6, 7, 8, 0], [10, 11, 12, 0], [14, 15, 16, 0], [0, 0, 0, 0]]
    assert one("crop", LARGEST, LARGEST, 0) == shifted  # the furthest: a pixel up and a pixel left
    assert one("crop", 0.5, 0.5, 0) == image[0, 0, 0].tolist()
    corner = [[0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    assert one("cutout", 0.0, 0.0, 0) == corner  # a 2 x 2 square around the corner of the image
    middle = [[1, 2, 3, 4], [5, 0, 0, 8], [9, 0, 0, 12], [13, 14, 15, 16]]
    assert one("cutout", 0.5, 0.5, 0) == middle
    assert one("flip", 0.49, 0, 0) == image.flip(-1)[0, 0, 0].tolist()
    assert one("flip", 0.5, 0, 0) == image[0, 0, 0].tolist()
    assert one("color", 0.75, 0.5, 0.5) == (image + 0.25)[0, 0, 0].tolist()


def test_scale_above_one_shrinks_and_a_positive_angle_is_anticlockwise() -> None:
    image = torch.zeros(1, 1, 1, 33, 33)
    image[..., 16, 28] = 1  # to the right of the centre
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")

    def centre_of_mass(name: str, *u: float) -> tuple[float, float]:
        mass = augment(image, torch.tensor([[0.0, *u]]), (name,))[0, 0, 0]
        return float((mass * rows).sum() / mass.sum()), float((mass * columns).sum() / mass.sum())

    row, column = centre_of_mass("scale", LARGEST, 0.5, 0)
    assert column == pytest.approx(16 + 12 / 1.2, abs=0.3)
    assert row == pytest.approx(16, abs=0.01)
    row, column = centre_of_mass("rotate", LARGEST, 0, 0)
    assert row == pytest.approx(16 - 12 * math.sin(math.radians(15)), abs=0.3)  # up
    assert column == pytest.approx(16 + 12 * math.cos(math.radians(15)), abs=0.3)


def test_real_and_synthetic_images_of_a_class_are_augmented_alike() -> None:
    draws = uniform(50)
    real, synthetic = normal(50, 7, 3, 8, 8, dtype=torch.float32), normal(50, 2, 3, 8, 8, seed=1, dtype=torch.float32)
    real[:, 5], synthetic[:, 1] = real[:, 0], real[:, 0]
    augmented, twin = augment(real, draws), augment(synthetic, draws)
    assert torch.equal(augmented[:, 5], augmented[:, 0])
    assert torch.equal(twin[:, 1], augmented[:, 0])
    assert not torch.equal(augmented, real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(3, 7, 9), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("strategy", [STRATEGY, *((name,) for name in STRATEGY)], ids="_".join)
def test_chunks_of_groups_change_no_bit(strategy: tuple[str, ...], size: tuple[int, ...], dtype: torch.dtype) -> None:
    draws = uniform(23)
    images = normal(23, 3, *size, dtype=dtype).requires_grad_()
    upstream = normal(23, 3, *size, seed=1, dtype=dtype)
    whole = augment(images, draws, strategy)
    (whole_gradient,) = torch.autograd.grad(whole, images, upstream)
    for cuts in ([0, 3, 10, 23], list(range(24))):
        chunks = [slice(*ends) for ends in itertools.pairwise(cuts)]
        parts = [augment(images[chunk], draws[chunk], strategy) for chunk in chunks]
        (gradient,) = torch.autograd.grad(torch.cat(parts), images, upstream)
        assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(gradient, whole_gradient)


@pytest.mark.parametrize("name", STRATEGY)
def test_gradient(name: str) -> None:
    images = normal(4, 2, 3, 5, 4).requires_grad_()
    draws = uniform(4, seed=3)
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, (name,)), images)


def test_gradient_of_mixed_operations() -> None:
    draws = uniform(6)
    draws[:, 0] = torch.tensor([5, 0, 3, 1, 2, 4]) / 6 + 0.01
    images = normal(6, 1, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, draws), images)
    assert torch.autograd.gradcheck(lambda x: augment_batch(x[:, 0], draws), images)


@pytest.mark.parametrize("name", STRATEGY)
def test_the_batch_form_has_one_operation_and_parameters_for_each_image(name: str) -> None:
    draws = uniform(20)
    draws[0, 0] = STRATEGY.index(name) / len(STRATEGY) + 0.01
    images = normal(20, 3, 8, 8)
    expected = published(images[:, None], draws, (name,))[:, 0]
    torch.testing.assert_close(augment_batch(images, draws), expected)
    shared = torch.cat((draws[:1, :1].expand(20, 1), draws[:, 1:]), 1)
    assert torch.equal(augment_batch(images, draws), augment(images[:, None], shared)[:, 0])


def test_every_operation_is_equally_likely() -> None:
    draws = uniform(6000)
    images = normal(6000, 1, 1, 4, 4, dtype=torch.float32)
    chosen = torch.tensor([math.floor(first * len(STRATEGY)) for first in draws[:, 0].tolist()])
    alone = torch.stack([augment(images, draws, (name,)) for name in STRATEGY])
    assert torch.equal(augment(images, draws), alone[chosen, torch.arange(6000)])
    assert all(abs(count - 1000) < 120 for count in chosen.bincount(minlength=6).tolist())  # 4 standard deviations


@pytest.mark.parametrize(("name", "size", "outcomes"), [("crop", 32, 9), ("cutout", 8, 9), ("cutout", 10, 10)])
def test_whole_numbers_reach_both_ends_equally_often(name: str, size: int, outcomes: int) -> None:
    draws = uniform(9000)
    images = torch.arange(1.0, size + 1).expand(9000, 1, 1, 1, size)
    _, counts = augment(images, draws, (name,)).unique(dim=0, return_counts=True)
    assert len(counts) == outcomes
    assert all(abs(count / (9000 / outcomes) - 1) < 0.14 for count in counts.tolist())


def test_a_hole_and_the_outside_hide_nan() -> None:
    images = torch.full((1, 1, 1, 8, 8), torch.nan)
    assert augment(images, torch.tensor([[0, 0.5, 0.5, 0]]), ("cutout",)).eq(0).sum() == 16
    assert augment(images, torch.tensor([[0, 0.0, 0.5, 0]]), ("crop",)).eq(0).sum() == 8
    assert augment(images, torch.tensor([[0, 0.7, 0.5, 0]]), ("color",)).isnan().all()


@pytest.mark.parametrize("name", STRATEGY)
def test_strided_images(name: str) -> None:
    images = normal(4, 2, 3, 8, 6)
    strided = images.movedim(2, -1).contiguous().movedim(-1, 2)
    torch.testing.assert_close(augment(strided, uniform(4), (name,)), augment(images, uniform(4), (name,)))


def test_nothing_to_do() -> None:
    images = normal(3, 2, 3, 8, 8)
    assert augment(images, uniform(3), ()) is images
    batch = images[0]
    assert augment_batch(batch, uniform(2), ()) is batch
    assert augment(images[:0], uniform(0)).shape == (0, 2, 3, 8, 8)
    assert augment(images[:, :0], uniform(3)).shape == (3, 0, 3, 8, 8)
    assert augment_batch(batch[:0], uniform(0)).shape == (0, 3, 8, 8)


def test_parse_strategy() -> None:
    assert parse_strategy("color_crop_cutout_flip_scale_rotate") == STRATEGY
    assert parse_strategy("flip_crop") == ("flip", "crop")
    assert parse_strategy("none") == parse_strategy("") == ()
    with pytest.raises(ValueError, match=r"'colr', only .*did you mean color"):
        parse_strategy("colr_crop")
    with pytest.raises(ValueError, match="''"):
        parse_strategy("crop_")


def test_wrong_arguments() -> None:
    images, draws = normal(2, 3, 3, 8, 8), uniform(2)
    with pytest.raises(TypeError, match=r"images must be float32 or float64, got torch\.float16"):
        augment(images.half(), draws)
    with pytest.raises(ValueError, match=r"images must have shape \(G, n, C, H, W\), got \(3, 3, 8, 8\)"):
        augment(images[0], draws)
    with pytest.raises(ValueError, match=r"images must have shape \(N, C, H, W\), got \(2, 3, 3, 8, 8\)"):
        augment_batch(images, draws)
    with pytest.raises(TypeError, match=r"draws must be float32, got torch\.float64"):
        augment(images, draws.double())
    with pytest.raises(ValueError, match=r"draws must have shape \(2, 4\) for these images, got \(3, 4\)"):
        augment(images, uniform(3))
    with pytest.raises(ValueError, match="draws must lie on the CPU, got meta"):
        augment(images, draws.to("meta"))
    with pytest.raises(ValueError, match=r"draws must lie in \[0, 1\), got 1 to 1"):
        augment(images, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"draws must lie in \[0, 1\)"):
        augment(images, torch.full((2, 4), torch.nan))
    with pytest.raises(ValueError, match="did you mean rotate"):
        augment(images, draws, ("rotat",))
