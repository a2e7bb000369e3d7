"""Several small images in the place of one: what a synthetic image holds, and the training images it stands for.

IDM cuts a synthetic image into quadrants and enlarges each to full size, in matching and in evaluation.
"""

import torch
from torch import Tensor

from ddfast.errors import UserError


def check_partition(factor: int, size: tuple[int, int]) -> None:
    """Refuses a factor that does not divide the images' size."""
    if size[0] % factor or size[1] % factor:
        raise UserError(f"partition must divide the images' size of {size[0]}x{size[1]}, got {factor}")


def expand(images: Tensor, factor: int) -> Tensor:
    """Every piece of every image at full size, bilinear: as F.interpolate without align_corners, to rounding.

    Made of slices and sums alone, whose gradients are deterministic on GPUs too, which those of F.interpolate are not.

    Args:
        images: (..., n, C, H, W) floats, H and W divisible by `factor`.
        factor: pieces along each side; 1 leaves the images as they are.

    Returns:
        (..., factor²·n, C, H, W) in blocks of n: first the top left pieces of all n, then those below them, and so on
        down one column of pieces after another.
    """
    if factor == 1:
        return images
    rows = torch.stack(images.chunk(factor, -2))  # (factor, ..., n, C, H / factor, W)
    pieces = torch.stack(rows.chunk(factor, -1))  # (columns, rows, ..., n, C, H / factor, W / factor)
    blocks = pieces.flatten(0, 1).movedim(0, -5).flatten(-5, -4)
    return _stretch(_stretch(blocks, factor, -2), factor, -1)


def assemble(images: Tensor, factor: int) -> Tensor:
    """Full-size images (factor², ..., C, H, W), each made smaller by its means of factor x factor pixels, as the pieces
    of one image (..., C, H, W), in the order of `expand`."""
    height, width = (extent // factor for extent in images.shape[-2:])
    pieces = images.unflatten(-1, (width, factor)).unflatten(-3, (height, factor)).mean((-3, -1))
    columns = [torch.cat(list(column), -2) for column in pieces.unflatten(0, (factor, factor))]
    return torch.cat(columns, -1)


def _stretch(x: Tensor, factor: int, dim: int) -> Tensor:
    """Enlarges one dimension: `factor` points for each pixel, between it and its neighbours; a border has none."""
    dim %= x.ndim
    last = x.shape[dim] - 1
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, last)], dim)
    after = torch.cat([x.narrow(dim, 1, last), x.narrow(dim, last, 1)], dim)
    places = [(number + 0.5) / factor - 0.5 for number in range(factor)]  # of the points, in pixels from its centre
    points = [torch.lerp(x, after if place > 0 else before, abs(place)) for place in places]
    return torch.stack(points, dim + 1).flatten(dim, dim + 1)
