"""The reference backend of augmentation: every operation on all images, of which each group takes its own.

So nothing waits for a table on a device, at several times the work of the operations that were asked for.
"""

import torch
from torch import Tensor

from ddfast.operators.library import implement
from ddfast.operators.schemas import COLOR, CUT, MIRROR, SAMPLE, SHIFT

_BILINEAR, _ZEROS, _CORNERS = 0, 0, False  # how the operators below know the options of `grid_sample`


def augment(images: Tensor, table: Tensor) -> Tensor:
    flat, grid = images.flatten(0, 1), _grid(images, table)
    sampled = torch.ops.aten.grid_sampler_2d(flat, grid, _BILINEAR, _ZEROS, _CORNERS)
    return _chosen(images, table, table[:, 5], table[:, 1:3], sampled)


def augment_backward(grad: Tensor, table: Tensor) -> Tensor:
    """Colours, holes and mirrors are symmetric maps, and a shift goes back; only a sample has another transpose."""
    flat, grid, wanted = grad.flatten(0, 1), _grid(grad, table), [True, False]
    spread, _ = torch.ops.aten.grid_sampler_2d_backward(flat, flat, grid, _BILINEAR, _ZEROS, _CORNERS, wanted)
    return _chosen(grad, table, torch.zeros_like(table[:, 5]), -table[:, 1:3], spread)


def _chosen(images: Tensor, table: Tensor, offset: Tensor, shift: Tensor, sampled: Tensor) -> Tensor:
    results = {
        COLOR: _color(images, table[:, 1:4], offset),
        SHIFT: _shift(images, shift.long()),
        CUT: _cut(images, table[:, 1:5]),
        MIRROR: images.flip(-1),
        SAMPLE: sampled.unflatten(0, images.shape[:2]),
    }
    chosen = images
    for operation, result in results.items():
        chosen = torch.where(table[:, 0].eq(operation)[:, None, None, None, None], result, chosen)
    return chosen.contiguous()


def _color(images: Tensor, weights: Tensor, offset: Tensor) -> Tensor:
    coefficients = torch.stack((*weights.unbind(1), offset)).to(images.dtype)
    gain, pixel, image, offset = coefficients[..., None, None, None, None]
    mean = images.mean(2, keepdim=True)
    return gain * images + (pixel * mean + (image * mean.mean((3, 4), keepdim=True) + offset))


def _shift(images: Tensor, by: Tensor) -> Tensor:
    """A cyclic shift, of which what comes from outside is then hidden: zeros would not hide a NaN."""
    height, width = images.shape[-2:]
    rows, columns = _axes(images)
    row, column = rows + by[:, 0, None, None], columns + by[:, 1, None, None]  # (G, H, 1), (G, 1, W)
    index = (row % height * width + column % width).flatten(1)[:, None, None]
    shifted = images.flatten(-2).take_along_dim(index, -1).unflatten(-1, (height, width))
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    return shifted.masked_fill(outside[:, None, None], 0)


def _cut(images: Tensor, bounds: Tensor) -> Tensor:
    rows, columns = _axes(images)
    top, bottom, left, right = bounds.T[..., None, None]
    hole = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (G, H, W)
    return images.masked_fill(hole[:, None, None], 0)


def _grid(images: Tensor, table: Tensor) -> Tensor:
    """Where SAMPLE reads, (G·n, H, W, 2) as (x, y) in [−1, 1].

    `affine_grid` would let a matrix product round to TF32 or 16 bits, and so move pixels visibly.
    """
    (n, _, height, width), (rows, columns) = images.shape[1:], _axes(images)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    a, b, c, d = table[:, 1:5].T[..., None, None]
    grid = torch.stack(((a * x + b * y) * (2 / width), (c * x + d * y) * (2 / height)), -1)
    return grid.to(images.dtype)[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)


def _axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (W,)."""
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    return rows[:, None], columns


for _operator in (augment, augment_backward):
    implement("reference", _operator.__name__, _operator, "CompositeExplicitAutograd")
