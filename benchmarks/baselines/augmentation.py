"""Siamese augmentation in eager PyTorch: an operation at a time for all classes that drew it, or class by class.

Images are (G, n, C, H, W), draws (G, 4) uniform on the CPU: the operation, and what its parameters are made of.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SHIFT = 0.125
_HOLE = 0.5
_ZOOM = 1.2
_TURN = math.radians(15)


def eager(images: Tensor, draws: Tensor) -> Tensor:
    """Sorts the classes by operation, on the host, which then knows how many of each there are."""
    chosen = _integers(draws[:, 0], len(_OPERATIONS))
    used, counts = chosen.unique(return_counts=True)
    order = chosen.argsort(stable=True)
    there, back = torch.stack((order, order.argsort())).to(images.device, non_blocking=True)
    sizes = counts.tolist()
    parts = images.index_select(0, there).split(sizes)
    parameters = _parameters(draws[order], images.device).split(sizes)
    operations = [_OPERATIONS[number] for number in used.tolist()]
    augmented = [operation(part, u) for operation, part, u in zip(operations, parts, parameters, strict=True)]
    return torch.cat(augmented).index_select(0, back)


def loop(images: Tensor, draws: Tensor) -> Tensor:
    """As the published scripts do."""
    chosen, u = _integers(draws[:, 0], len(_OPERATIONS)).tolist(), _parameters(draws, images.device)
    return torch.cat([_OPERATIONS[chosen[k]](images[k : k + 1], u[k : k + 1]) for k in range(len(images))])


def _parameters(draws: Tensor, device: torch.device) -> Tensor:
    return draws[:, 1:].to(device, torch.float64, non_blocking=True)


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


_OPERATIONS = (_color, _crop, _cutout, _flip, _scale, _rotate)
