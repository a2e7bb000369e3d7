"""Differentiable siamese augmentation (Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation",
ICML 2021): one random operation for all images of a class, the real ones and the synthetic ones alike.

The operations are functions of uniform draws rather than of a random state, so the caller makes the two sides siamese
by passing the same draws twice, and neither chunks nor devices change what is drawn.
"""

import difflib
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfast.errors import UserError

DRAWS = 4

_SHIFT = 0.125
_HOLE = 0.5
_ZOOM = 1.2
_TURN = math.radians(15)


def _color(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness x + b, then saturation s·(x − mean over C) + mean, then contrast c·(x − mean over C, H, W) + mean.

    Saturation moves neither mean and brightness moves both by b, which makes the three one affine map.
    """
    u = draws.to(images.dtype).T[..., None, None, None, None]
    brightness, saturation, contrast = u[0] - 0.5, 2 * u[1], u[2] + 0.5
    pixel = images.mean(2, keepdim=True)
    image = pixel.mean((3, 4), keepdim=True)
    shift = contrast * (1 - saturation) * pixel + ((1 - contrast) * image + brightness)
    return contrast * saturation * images + shift


def _crop(images: Tensor, draws: Tensor) -> Tensor:
    """Shifts rows and columns by whole pixels; what comes from outside is 0.

    The shift is cyclic, a permutation, before the mask: its backward has nothing to add up and so is deterministic.
    """
    height, width = images.shape[-2:]
    rows, columns = _per_axis(_sources, images, draws)
    row, column = rows % height, columns % width
    index = (row * width + column).flatten(-2)
    shifted = images.flatten(-2).take_along_dim(index, -1).unflatten(-1, (height, width))
    return shifted.masked_fill((row != rows) | (column != columns), 0)


def _sources(size: int, draws: Tensor) -> Tensor:
    """Where each pixel of an axis comes from: (G,) draws -> (G, size) int64, partly outside 0 .. size − 1."""
    furthest = int(_SHIFT * size + 0.5)
    shift = _integers(draws, 2 * furthest + 1) - furthest
    return torch.arange(size, device=draws.device) + shift[:, None]


def _cutout(images: Tensor, draws: Tensor) -> Tensor:
    """Fills a square of half the image's size, clipped at the border, with 0."""
    rows, columns = _per_axis(_covered, images, draws)
    return images.masked_fill(rows & columns, 0)


def _covered(size: int, draws: Tensor) -> Tensor:
    """Which pixels of an axis the square covers: (G,) draws -> (G, size) bool."""
    side = int(_HOLE * size + 0.5)
    first = _integers(draws, size + 1 - side % 2) - side // 2
    offset = torch.arange(size, device=draws.device) - first[:, None]
    return (offset >= 0) & (offset < side)


def _flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirrors left and right with probability 1/2."""
    return torch.where((draws[:, 0] < 0.5)[:, None, None, None, None], images.flip(-1), images)


def _scale(images: Tensor, draws: Tensor) -> Tensor:
    """Shrinks (factors above 1) or enlarges width and height about the centre, each by its own factor."""
    return _resample(images, torch.diag_embed(1 / _ZOOM + (_ZOOM - 1 / _ZOOM) * draws[:, :2]))


def _rotate(images: Tensor, draws: Tensor) -> Tensor:
    """Turns about the centre, anticlockwise for positive angles."""
    angle = (2 * draws[:, 0] - 1) * _TURN
    cos, sin = angle.cos(), angle.sin()
    return _resample(images, torch.stack((cos, -sin, sin, cos), -1).view(-1, 2, 2))


def _resample(images: Tensor, theta: Tensor) -> Tensor:
    """Samples group g bilinearly at theta[g] (2, 2) times each pixel's (x, y) in [−1, 1]; 0 outside.

    This is `affine_grid`, whose matrix product may however round to TF32 or 16 bits and so move pixels visibly.
    """
    n, height, width = images.shape[1], *images.shape[-2:]
    x = (torch.arange(width, dtype=theta.dtype, device=theta.device) * 2 + 1) / width - 1
    y = (torch.arange(height, dtype=theta.dtype, device=theta.device) * 2 + 1) / height - 1
    to_x, to_y = theta[:, None, None].unbind(-1)
    grid = (to_x * x[:, None] + to_y * y[:, None, None]).to(images.dtype)
    grid = grid[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
    return F.grid_sample(images.flatten(0, 1), grid, align_corners=False).unflatten(0, images.shape[:2])


def _integers(draws: Tensor, count: int) -> Tensor:
    """Uniform in {0 .. count − 1}: float64 holds the product of a float32 and `count` exactly, so below `count`."""
    return (draws.double() * count).long()


def _per_axis(along: Callable[[int, Tensor], Tensor], images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """`along(size, draws)` for the rows (G, 1, 1, H, 1) and for the columns (G, 1, 1, 1, W)."""
    height, width = images.shape[-2:]
    return along(height, draws[:, 0])[:, None, None, :, None], along(width, draws[:, 1])[:, None, None, None, :]


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}

STRATEGY = tuple(_OPERATIONS)


def parse_strategy(text: str) -> tuple[str, ...]:
    """The operations in a string such as "color_crop_cutout_flip_scale_rotate"; none in "none" and "".

    Raises:
        UserError: if one of them is unknown.
    """
    strategy = () if text in ("", "none") else tuple(text.split("_"))
    _check_strategy(strategy)
    return strategy


def augment(images: Tensor, draws: Tensor, strategy: Sequence[str] = STRATEGY) -> Tensor:
    """Applies one operation to each group of images, with the same parameters for all images of the group.

    A group is a class; real and synthetic images are augmented alike by calls with the same draws. A group's result
    depends on its own images and draws only, to the last bit on the CPU. Differentiable in `images`; the host never
    waits for the device, because what decides which operations run lies in host memory.

    Args:
        images: (G, n, C, H, W) float32 or float64, normalised.
        draws: (G, DRAWS) float32 on the CPU, uniform in [0, 1): the first chooses the operation, the others its
            parameters.
        strategy: the operations to choose from, equally likely; with none of them the images are returned as they are.

    Returns:
        (G, n, C, H, W) of the dtype and device of `images`, not clamped.

    Raises:
        TypeError: if `images` or `draws` is of another dtype.
        ValueError: if a shape does not fit, `draws` is elsewhere or outside [0, 1), or an operation is unknown.
    """
    _check(images, draws, strategy, "GnCHW")
    if not strategy or not images.numel():
        return images
    chosen = _integers(draws[:, 0], len(strategy))
    used, counts = chosen.unique(return_counts=True)
    operations = [_OPERATIONS[strategy[index]] for index in used.tolist()]
    if len(operations) == 1:
        return operations[0](images, _parameters(draws, images.device))

    order = chosen.argsort(stable=True)
    there, back = torch.stack((order, order.argsort())).to(images.device, non_blocking=True)
    sizes = counts.tolist()
    parts = images.index_select(0, there).split(sizes)
    parameters = _parameters(draws[order], images.device).split(sizes)
    augmented = [operation(part, u) for operation, part, u in zip(operations, parts, parameters, strict=True)]
    return torch.cat(augmented).index_select(0, back)


def augment_batch(images: Tensor, draws: Tensor, strategy: Sequence[str] = STRATEGY) -> Tensor:
    """Applies one operation to the whole batch, with parameters of its own for every image, as evaluation does.

    Args:
        images: (N, C, H, W) float32 or float64, normalised.
        draws: (N, DRAWS) float32 on the CPU, uniform in [0, 1): row 0 chooses the operation.
        strategy: as in `augment`.

    Returns:
        (N, C, H, W) of the dtype and device of `images`.

    Raises:
        TypeError, ValueError: as `augment` does.
    """
    _check(images, draws, strategy, "NCHW")
    if not strategy or not images.numel():
        return images
    operation = _OPERATIONS[strategy[int(_integers(draws[0, 0], len(strategy)))]]
    return operation(images[:, None], _parameters(draws, images.device))[:, 0]


def _parameters(draws: Tensor, device: torch.device) -> Tensor:
    return draws[:, 1:].to(device, torch.float64, non_blocking=True)


def _check(images: Tensor, draws: Tensor, strategy: Sequence[str], axes: str) -> None:
    expected = f"({', '.join(axes)})"
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images must be float32 or float64, got {images.dtype}")
    if images.ndim != len(axes):
        raise ValueError(f"images must have shape {expected}, got {tuple(images.shape)}")
    if draws.dtype != torch.float32:
        raise TypeError(f"draws must be float32, got {draws.dtype}")
    if draws.shape != (len(images), DRAWS):
        raise ValueError(f"draws must have shape {(len(images), DRAWS)} for these images, got {tuple(draws.shape)}")
    if draws.device.type != "cpu":
        raise ValueError(f"draws must lie on the CPU, got {draws.device}")
    if not ((draws >= 0) & (draws < 1)).all():
        raise ValueError(f"draws must lie in [0, 1), got {draws.min():g} to {draws.max():g}")
    _check_strategy(strategy)


def _check_strategy(strategy: Sequence[str]) -> None:
    for name in strategy:
        if name not in _OPERATIONS:
            near = difflib.get_close_matches(name.lower(), STRATEGY, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"strategy knows no operation {name!r}, only {', '.join(STRATEGY)}{hint}")
