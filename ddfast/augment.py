"""Differentiable siamese augmentation (Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation",
ICML 2021): one random operation for all images of a class, the real ones and the synthetic ones alike.

The operations are functions of uniform draws rather than of a random state, so the caller makes the two sides siamese
by passing the same draws twice, and neither chunks nor devices change what is drawn.
"""

import difflib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddfast import operators
from ddfast.errors import UserError
from ddfast.operators.schemas import COLOR, CUT, MIRROR, SAMPLE, SHIFT, TABLE

DRAWS = 4

_SHIFT = 0.125
_HOLE = 0.5
_ZOOM = 1.2
_TURN = math.radians(15)


Array = NDArray[np.float64]  # (G,), of numbers on the host: there NumPy takes a tenth of the time that PyTorch would
Columns = tuple[Array | float, ...]  # the first columns of the operators' table, whose others are 0


def _color(u: Array, height: int, width: int) -> Columns:
    """Brightness x + b, then saturation s·(x − mean over C) + mean, then contrast c·(x − mean over C, H, W) + mean.

    Saturation moves neither mean and brightness moves both by b, which makes the three one affine map.
    """
    brightness, saturation, contrast = u[0] - 0.5, 2 * u[1], u[2] + 0.5
    return COLOR, contrast * saturation, contrast * (1 - saturation), 1 - contrast, 0, brightness


def _crop(u: Array, height: int, width: int) -> Columns:
    """Shifts rows and columns by whole pixels; what comes from outside is 0."""
    furthest = [int(_SHIFT * size + 0.5) for size in (height, width)]
    return SHIFT, *(_integers(draw, 2 * most + 1) - most for draw, most in zip(u, furthest, strict=False))


def _cutout(u: Array, height: int, width: int) -> Columns:
    """Fills a square of half the image's size, clipped at the border, with 0."""
    sides = [int(_HOLE * size + 0.5) for size in (height, width)]
    top = _integers(u[0], height + 1 - sides[0] % 2) - sides[0] // 2
    left = _integers(u[1], width + 1 - sides[1] % 2) - sides[1] // 2
    return CUT, top, top + sides[0], left, left + sides[1]


def _flip(u: Array, height: int, width: int) -> Columns:
    """Mirrors left and right with probability 1/2, or shifts by nothing."""
    return (np.where(u[0] < 0.5, MIRROR, SHIFT),)


def _scale(u: Array, height: int, width: int) -> Columns:
    """Shrinks (factors above 1) or enlarges width and height about the centre, each by its own factor."""
    to_x, to_y = 1 / _ZOOM + (_ZOOM - 1 / _ZOOM) * u[:2]
    return SAMPLE, to_x, 0, 0, to_y


def _rotate(u: Array, height: int, width: int) -> Columns:
    """Turns about the centre, anticlockwise for positive angles, in coordinates that make the image a square."""
    angle = (2 * u[0] - 1) * _TURN
    cos, sin = np.cos(angle), np.sin(angle)
    return SAMPLE, cos, -sin * (width / height), sin * (height / width), cos


def _integers(draws: Array, count: int) -> Array:
    """Uniform in {0 .. count − 1}: float64 holds the product of a float32 and `count` exactly, so below `count`."""
    return np.floor(draws * count)


_OPERATIONS: dict[str, Callable[[Array, int, int], Columns]] = {
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


def augment(images: Tensor, draws: Tensor, strategy: Sequence[str] = STRATEGY, *, backend: str | None = None) -> Tensor:
    """Applies one operation to each group of images, with the same parameters for all images of the group.

    A group is a class; real and synthetic images are augmented alike by calls with the same draws. A group's result
    depends on its own images and draws only, to the last bit. Differentiable in `images`, to any order; the host never
    waits for the device, because what becomes of the draws is calculated in host memory.

    Args:
        images: (G, n, C, H, W) float32 or float64, normalised, of any strides.
        draws: (G, DRAWS) float32 on the CPU, uniform in [0, 1): the first chooses the operation, the others its
            parameters.
        strategy: the operations to choose from, equally likely; with none of them the images are returned as they are.
        backend: the implementation ("reference", "cpp", "triton"), by default the fastest that runs here.

    Returns:
        (G, n, C, H, W) of the dtype and device of `images`, contiguous, not clamped.

    Raises:
        TypeError: if `images` or `draws` is of another dtype.
        ValueError: if a shape does not fit, `draws` is elsewhere or outside [0, 1), or an operation or `backend` is
            unknown.
        NotImplementedError: if `backend` cannot run here.
    """
    _check(images, draws, "GnCHW")
    table = tabulate(draws, strategy, images.shape[-2:])
    return transform(images, table.to(images.device, non_blocking=True), backend=backend) if strategy else images


def tabulate(draws: Tensor, strategy: Sequence[str], size: Sequence[int]) -> Tensor:
    """What becomes of the draws (G, DRAWS) of G groups: (G, TABLE) float64 on the CPU, for `transform`.

    A loop that is captured in a CUDA graph makes it outside, and copies it to where the graph reads it.

    Args:
        draws, strategy: as in `augment`.
        size: (H, W) of the images.

    Raises:
        TypeError, ValueError: as `augment` does.
    """
    u = _uniform(draws, strategy)
    rows = np.zeros((TABLE, len(draws)))
    if strategy:
        chosen = _integers(u[0], len(strategy))
        for index, name in enumerate(strategy):
            _fill(rows, chosen == index, _OPERATIONS[name](u[1:], *size))
    return _table(rows)


def transform(images: Tensor, table: Tensor, *, backend: str | None = None) -> Tensor:
    """Images (G, n, C, H, W), each group by its row of a `tabulate`d table (G, TABLE) on their device."""
    return operators.augment(images, table, backend=backend) if images.numel() else images


def augment_batch(
    images: Tensor, draws: Tensor, strategy: Sequence[str] = STRATEGY, *, backend: str | None = None
) -> Tensor:
    """Applies one operation to the whole batch, with parameters of its own for every image, as evaluation does.

    Args:
        images: (N, C, H, W) float32 or float64, normalised, of any strides.
        draws: (N, DRAWS) float32 on the CPU, uniform in [0, 1): row 0 chooses the operation.
        strategy, backend: as in `augment`.

    Returns:
        (N, C, H, W) of the dtype and device of `images`, contiguous.

    Raises:
        TypeError, ValueError, NotImplementedError: as `augment` does.
    """
    _check(images, draws, "NCHW")
    table = tabulate_batch(draws, strategy, images.shape[-2:])
    if not strategy or not len(images):
        return images
    return transform(images[:, None], table.to(images.device, non_blocking=True), backend=backend)[:, 0]


def tabulate_batch(draws: Tensor, strategy: Sequence[str], size: Sequence[int]) -> Tensor:
    """What becomes of the draws (N, DRAWS) of a batch: (N, TABLE) float64 on the CPU, for images (N, 1, C, H, W).

    Args:
        draws, strategy: as in `augment_batch`.
        size: (H, W) of the images.

    Raises:
        TypeError, ValueError: as `augment_batch` does.
    """
    u = _uniform(draws, strategy)
    rows = np.zeros((TABLE, len(draws)))
    if strategy and len(draws):
        operation = _OPERATIONS[strategy[int(_integers(u[0, :1], len(strategy))[0])]]
        _fill(rows, True, operation(u[1:], *size))
    return _table(rows)


def _fill(rows: Array, where: NDArray[np.bool_] | bool, columns: Columns) -> None:
    for row, values in zip(rows, columns, strict=False):
        np.copyto(row, values, where=where)


def _table(rows: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows.T))


def _check(images: Tensor, draws: Tensor, axes: str) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images must be float32 or float64, got {images.dtype}")
    if images.ndim != len(axes):
        raise ValueError(f"images must have shape ({', '.join(axes)}), got {tuple(images.shape)}")
    if draws.shape != (len(images), DRAWS):
        raise ValueError(f"draws must have shape {(len(images), DRAWS)} for these images, got {tuple(draws.shape)}")


def _uniform(draws: Tensor, strategy: Sequence[str]) -> Array:
    """The draws as (DRAWS, G)."""
    if draws.dtype != torch.float32:
        raise TypeError(f"draws must be float32, got {draws.dtype}")
    if draws.device.type != "cpu":
        raise ValueError(f"draws must lie on the CPU, got {draws.device}")
    u = draws.detach().numpy().T.astype(np.float64)
    if not ((u >= 0) & (u < 1)).all():
        raise ValueError(f"draws must lie in [0, 1), got {u.min():g} to {u.max():g}")
    _check_strategy(strategy)
    return u


def _check_strategy(strategy: Sequence[str]) -> None:
    for name in strategy:
        if name not in _OPERATIONS:
            near = difflib.get_close_matches(name.lower(), STRATEGY, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"strategy knows no operation {name!r}, only {', '.join(STRATEGY)}{hint}")
