"""`ddfast.augment` against the published formulas, written out image by image and pixel by pixel."""

import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import INTERPRETED, assert_accurate, assert_close, differentiate, many, runnable
from torch import Tensor

from ddfast import keyed, operators
from ddfast.augment import DRAWS, STRATEGY, augment, augment_batch, parse_strategy
from ddfast.operators.augment import Augment
from ddfast.operators.schemas import COLOR, CUT, MIRROR, SAMPLE, SHIFT, TABLE

pytestmark = pytest.mark.usefixtures("poisoned")

# The reference's transpose of a sample has no deterministic implementation on a GPU, and says so.
PAIRS = [pair for pair in runnable("augment", "augment_backward") if pair != ("reference", "cuda")]
each_backend = pytest.mark.parametrize(("backend", "device"), PAIRS, ids=[f"{backend}-{it}" for backend, it in PAIRS])
each_operation = pytest.mark.parametrize("name", STRATEGY)

LARGEST = 0.99999994  # the float32 before 1
SIZES = [(3, 8, 8), (1, 9, 7), (3, 5, 12), (5, 2, 17)]
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
    """The same numbers, rounded, in any dtype."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.float().to(dtype)


def uniform(groups: int, seed: int = 0) -> Tensor:
    return keyed.uniform(seed, 0, torch.arange(groups), "test", DRAWS)


def run(
    images: Tensor, draws: Tensor, strategy: tuple[str, ...], backend: str, device: str, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The augmented images and the gradient, of normal numbers unless another upstream gradient is given."""
    upstream = normal(*images.shape, seed=9, dtype=images.dtype) if upstream is None else upstream
    call = lambda leaf: augment(leaf, draws, strategy, backend=backend)  # noqa: E731
    value, gradient = differentiate(call, images.to(device), upstream.to(device))
    return value.cpu(), gradient.cpu()


def expected(images: Tensor, draws: Tensor, strategy: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The same by the published formulas and autograd."""
    upstream = normal(*images.shape, seed=9, dtype=images.dtype)
    return differentiate(lambda leaf: published(leaf, draws, strategy), images, upstream)


@each_backend
@each_operation
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_operation_is_the_published_one(name: str, size: tuple[int, int, int], backend: str, device: str) -> None:
    draws = torch.cat((torch.tensor([(0.3, *edge) for edge in EDGES]), uniform(8)))
    images = normal(len(draws), 2, *size)
    for ours, right in zip(run(images, draws, (name,), backend, device), expected(images, draws, (name,)), strict=True):
        assert_close(ours, right)


@each_backend
@many
@given(
    rows=st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=5),
    names=st.permutations(STRATEGY),
    operations=st.integers(1, 6),
)
def test_mixed_operations_are_the_published_ones(
    rows: list[tuple[float, ...]], names: list[str], operations: int, backend: str, device: str
) -> None:
    draws, strategy = torch.tensor(rows), tuple(names[:operations])
    images = normal(len(rows), 2, 3, 6, 7)
    for ours, right in zip(
        run(images, draws, strategy, backend, device), expected(images, draws, strategy), strict=True
    ):
        assert_close(ours, right)


@each_backend
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 64, 64)], ids=str)
@pytest.mark.parametrize("name", ["color", "scale", "rotate"])
def test_float32_is_as_accurate_as_eager(name: str, size: tuple[int, int, int], backend: str, device: str) -> None:
    draws, mean = uniform(3), 1e3 if name == "color" else 0.3
    images = (mean + normal(3, 2, *size)).float()
    results = (
        run(images, draws, (name,), backend, device),
        expected(images, draws, (name,)),
        expected(images.double(), draws, (name,)),
    )
    for triple in zip(*results, strict=True):
        assert_accurate([triple], torch.float32, "reference")  # for whom no product may be rounded to less


@each_backend
@pytest.mark.parametrize("name", ["color", "scale", "rotate"])
def test_float32_has_the_digits_of_float32(name: str, backend: str, device: str) -> None:
    """... also 16 pixels from the centre, where eager's positions are some eps of 16 off."""
    images, draws = normal(4, 2, 3, 32, 32), uniform(4)
    exact = run(images, draws, (name,), "reference", "cpu")
    tolerance = 3e-5 if backend == "reference" else 4 * torch.finfo(torch.float32).eps
    for ours, right in zip(run(images.float(), draws, (name,), backend, device), exact, strict=True):
        assert_close(ours, right, tolerance)


@each_backend
@pytest.mark.parametrize("name", ["crop", "cutout", "flip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pixels_that_only_move_keep_their_bits(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    images, draws = normal(6, 2, 3, 28, 33, dtype=dtype), uniform(6)
    exact = run(images, draws, (name,), "reference", "cpu")
    for ours, right in zip(run(images, draws, (name,), backend, device), exact, strict=True):
        assert torch.equal(ours, right)


@each_backend
def test_worked_examples(backend: str, device: str) -> None:
    image = torch.arange(16.0, device=device).view(1, 1, 1, 4, 4) + 1

    def one(name: str, *u: float) -> list[list[float]]:
        return augment(image, torch.tensor([[0.0, *u]]), (name,), backend=backend)[0, 0, 0].tolist()

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


@each_backend
def test_scale_above_one_shrinks_and_a_positive_angle_is_anticlockwise(backend: str, device: str) -> None:
    image = torch.zeros(1, 1, 1, 33, 33)
    image[..., 16, 28] = 1  # to the right of the centre
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")

    def centre_of_mass(name: str, *u: float) -> tuple[float, float]:
        mass = augment(image.to(device), torch.tensor([[0.0, *u]]), (name,), backend=backend)[0, 0, 0].cpu()
        return float((mass * rows).sum() / mass.sum()), float((mass * columns).sum() / mass.sum())

    row, column = centre_of_mass("scale", LARGEST, 0.5, 0)
    assert column == pytest.approx(16 + 12 / 1.2, abs=0.3)
    assert row == pytest.approx(16, abs=0.01)
    row, column = centre_of_mass("rotate", LARGEST, 0, 0)
    assert row == pytest.approx(16 - 12 * math.sin(math.radians(15)), abs=0.3)  # up
    assert column == pytest.approx(16 + 12 * math.cos(math.radians(15)), abs=0.3)


@each_backend
def test_real_and_synthetic_images_of_a_class_are_augmented_alike(backend: str, device: str) -> None:
    draws = uniform(20)
    real, synthetic = normal(20, 7, 3, 8, 8, dtype=torch.float32), normal(20, 2, 3, 8, 8, seed=1, dtype=torch.float32)
    real[:, 5], synthetic[:, 1] = real[:, 0], real[:, 0]
    augmented, twin = (augment(side.to(device), draws, backend=backend).cpu() for side in (real, synthetic))
    assert torch.equal(augmented[:, 5], augmented[:, 0])
    assert torch.equal(twin[:, 1], augmented[:, 0])
    assert not torch.equal(augmented, real)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(3, 7, 9), (1, 28, 28)], ids=str)
def test_chunks_of_groups_change_no_bit(size: tuple[int, ...], dtype: torch.dtype, backend: str, device: str) -> None:
    groups, n = 6, 2 if INTERPRETED else 6
    draws = uniform(groups)
    draws[:, 0] = torch.arange(groups) / 6 + 0.01
    images, upstream = normal(groups, n, *size, dtype=dtype), normal(groups, n, *size, seed=1, dtype=dtype)
    whole = run(images, draws, STRATEGY, backend, device, upstream)
    for cuts in ([0, 1, 4, 6], list(range(7))):
        chunks = [slice(*ends) for ends in itertools.pairwise(cuts)]
        parts = [run(images[chunk], draws[chunk], STRATEGY, backend, device, upstream[chunk]) for chunk in chunks]
        for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(together, torch.cat(apart))
    alone = run(images[:, 1:2], draws, STRATEGY, backend, device, upstream[:, 1:2])
    for together, one in zip(whole, alone, strict=True):
        assert torch.equal(together[:, 1:2], one)  # nor does it matter with which images one comes


@each_backend
@each_operation
def test_gradients_of_any_order(name: str, backend: str, device: str) -> None:
    """The map is affine: its second derivative in the images is zero, that of its gradient in the upstream is not."""
    images, draws = normal(2, 2, 2, 4, 3).to(device).requires_grad_(), uniform(2, seed=3)
    call = lambda leaf: augment(leaf, draws, (name,), backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda leaf: call(leaf).pow(3), images, fast_mode=True)


@each_backend
def test_gradient_of_mixed_operations(backend: str, device: str) -> None:
    draws = uniform(6)
    draws[:, 0] = torch.tensor([5, 0, 3, 1, 2, 4]) / 6 + 0.01
    images = normal(6, 1, 3, 4, 4).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, backend=backend), images, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: augment_batch(x[:, 0], draws, backend=backend), images, fast_mode=True)


@each_backend
def test_a_penalty_on_the_gradient(backend: str, device: str) -> None:
    """As gradient matching has it: the gradient of a function of the gradient."""
    draws, images = uniform(6), normal(6, 2, 3, 5, 6)

    def penalty(call, images: Tensor) -> Tensor:
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), leaf)[0].cpu()

    ours = penalty(lambda leaf: augment(leaf, draws, backend=backend), images.to(device))
    assert_close(ours, penalty(lambda leaf: published(leaf, draws, STRATEGY), images))


@each_backend
@each_operation
def test_the_batch_form_has_one_operation_and_parameters_for_each_image(name: str, backend: str, device: str) -> None:
    draws = uniform(20)
    draws[0, 0] = STRATEGY.index(name) / len(STRATEGY) + 0.01
    images = normal(20, 3, 8, 8)
    augmented = augment_batch(images.to(device), draws, backend=backend).cpu()
    assert_close(augmented, published(images[:, None], draws, (name,))[:, 0])
    shared = torch.cat((draws[:1, :1].expand(20, 1), draws[:, 1:]), 1)
    assert torch.equal(augmented, augment(images[:, None].to(device), shared, backend=backend)[:, 0].cpu())


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


@each_backend
def test_a_hole_and_the_outside_hide_nan(backend: str, device: str) -> None:
    images = torch.full((1, 1, 1, 8, 8), torch.nan)

    def both(name: str, *u: float) -> tuple[Tensor, Tensor]:
        return run(images, torch.tensor([[0, *u]]), (name,), backend, device, images)

    for result in both("cutout", 0.5, 0.5, 0):
        assert result.eq(0).sum() == 16
        assert result.isnan().sum() == 48
    for result in both("crop", 0.0, 0.5, 0):
        assert result.eq(0).sum() == 8
        assert result.isnan().sum() == 56
    for name in ("color", "scale", "rotate"):
        for result in both(name, 0.7, 0.5, 0):
            assert result[..., 1:-1, 1:-1].isnan().all()
    images = torch.full((1, 1, 1, 32, 32), torch.nan)
    assert both("scale", LARGEST, LARGEST, 0)[0][..., :2, :].eq(0).all()  # samples from beyond the border


@each_backend
@each_operation
def test_one_nan_reaches_what_depends_on_it(name: str, backend: str, device: str) -> None:
    images, draws = normal(3, 2, 3, 9, 8), uniform(3)
    images[1, 1, 2, 4, 4] = torch.nan
    for ours, right in zip(run(images, draws, (name,), backend, device), expected(images, draws, (name,)), strict=True):
        assert torch.equal(ours.isnan(), right.isnan())
    assert not run(images, draws, (name,), backend, device)[0][0].isnan().any()


@each_backend
@each_operation
def test_images_and_gradients_of_any_strides(name: str, backend: str, device: str) -> None:
    images, draws = normal(4, 2, 3, 8, 18), uniform(4)
    value, gradient = run(images, draws, (name,), backend, device)
    for order in ((0, 1, 3, 4, 2), (4, 3, 2, 0, 1), (1, 0, 2, 3, 4)):
        back = [order.index(axis) for axis in range(5)]
        strided, upstream = (
            it.permute(order).contiguous().permute(back) for it in (images, normal(*images.shape, seed=9))
        )
        for ours, right in zip(run(strided, draws, (name,), backend, device, upstream), (value, gradient), strict=True):
            assert_close(ours, right)
            assert ours.is_contiguous()
    rows = normal(4, 2, 3, 16, 40)[..., ::2, 3:21]
    once = run(rows, draws, (name,), backend, device, torch.ones(()).double().expand(rows.shape))
    for ours, right in zip(
        once, run(rows.clone(), draws, (name,), backend, device, torch.ones(rows.shape).double()), strict=True
    ):
        assert_close(ours, right)


@each_backend
def test_bitwise_the_same_from_run_to_run_and_for_any_number_of_threads(backend: str, device: str) -> None:
    images, draws = normal(6, 2 if INTERPRETED else 8, 3, 16, 16, dtype=torch.float32), uniform(6)
    first = run(images, draws, STRATEGY, backend, device)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for one, other in zip(first, run(images, draws, STRATEGY, backend, device), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


def table(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[*row, *[0.0] * (TABLE - len(row))] for row in rows], dtype=torch.float64)


EVERY = table(
    (COLOR, 0.8, 0.3, -0.2, 0, 0.4), (SHIFT, -1, 2), (CUT, 1, 3, -2, 2), (MIRROR,), (SAMPLE, 0.9, 0.2, -0.3, 1.1)
)


@each_backend
def test_shifts_and_holes_larger_than_the_image(backend: str, device: str) -> None:
    """The operators' own arguments, which no strategy draws."""
    rows = table((SHIFT, 9, 0), (SHIFT, 0, -9), (CUT, -5, 50, -5, 50), (CUT, 3, 1, 0, 9), (SAMPLE, 1e6, 0, 0, 1e6))
    images = normal(5, 2, 1, 4, 5).abs() + 1
    augmented = operators.augment(images.to(device), rows.to(device), backend=backend).cpu()
    assert augmented[:3].eq(0).all()
    assert torch.equal(augmented[3], images[3])
    assert augmented[4].eq(0).all()


@each_backend
def test_a_sample_that_enlarges_greatly_or_shears(backend: str, device: str) -> None:
    """The pixels that sampled one pixel are then many, and far apart."""
    rows = table(
        (SAMPLE, 0.15, 0, 0, 0.3), (SAMPLE, 1, 1.5, 0, 1), (SAMPLE, -0.2, 1.4, 0.5, 0.3), (SAMPLE, 3, 0, 0, 2.5)
    )
    images, upstream = normal(4, 2, 2, 9, 7), normal(4, 2, 2, 9, 7, seed=1)

    def both(name: str, where: str) -> tuple[Tensor, Tensor]:
        call = lambda leaf: operators.augment(leaf, rows.to(where), backend=name)  # noqa: E731
        return differentiate(call, images.to(where), upstream.to(where))

    for ours, right in zip(both(backend, device), both("reference", "cpu"), strict=True):
        assert_close(ours, right)


@each_backend
@pytest.mark.parametrize("operator", ["augment", "augment_backward"])
def test_opcheck(operator: str, backend: str, device: str) -> None:
    overload = getattr(getattr(torch.ops.ddfast, operator), backend)
    images = normal(5, 2, 3, 4, 5, dtype=torch.float32).to(device)
    for one in (images, images.mT.contiguous().mT, images[:0], images[:, :0]):
        torch.library.opcheck(overload, (one, EVERY[: len(one)].to(device)))


@each_backend
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_is_eager(dynamic: bool, backend: str, device: str) -> None:
    """What follows the draws, which are checked on the host, is one graph, forward and backward."""
    torch._dynamo.reset()

    def step(images: Tensor, rows: Tensor) -> Tensor:
        return 2 * operators.augment(images.sin(), rows, backend=backend)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for groups in (5, 4):
        images, rows = normal(groups, 2, 3, 4, 5).to(device), EVERY[:groups].to(device)
        upstream = normal(groups, 2, 3, 4, 5, seed=1).to(device)
        eager = differentiate(lambda leaf, rows=rows: step(leaf, rows), images, upstream)
        ours = differentiate(lambda leaf, rows=rows: compiled(leaf, rows), images, upstream)
        for one, other in zip(ours, eager, strict=True):
            assert torch.equal(one, other)


def test_the_backward_runs_on_the_backend_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[Augment.__module__]  # beside the function of its name
    asked, real = [], module.overload
    monkeypatch.setattr(module, "overload", lambda *args: asked.append(args[:2]) or real(*args))
    for name in (None, "reference"):
        augment(normal(1, 1, 1, 3, 3).requires_grad_(), uniform(1), backend=name).sum().backward()
    assert asked == [(it, name) for name in (None, "reference") for it in ("augment", "augment_backward")]


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
    with pytest.raises(ValueError, match="did you mean 'cpp'"):
        augment(images, draws, backend="cp")
    with pytest.raises(NotImplementedError, match="backend 'cuda'"):
        augment_batch(images[0, :2], draws, backend="cuda")
