"""The distilled images as one picture: a row for every class."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddfast.errors import UserError
from ddfast.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

MOST_IMAGES = 20  # of a class
MOST = 1000  # of all classes

_CELL = 64  # pixels an image should be wide and high
_GAP = 4
_MARGIN = 16
_NAME_WIDTH = 160
_INK = (32, 32, 32)
_FAINT_INK = (112, 112, 112)


def save_grid(images: Tensor, classes: Sequence[str], per_class: int, path: Path) -> None:
    """Writes what `draw_grid` draws as a PNG, replaced in one step. Raises `UserError` without Pillow."""
    try:
        page = draw_grid(images, classes, per_class)
    except ImportError as error:
        raise UserError(f"{path.name} is drawn by Pillow, which is missing: pip install 'ddfast[plot]'") from error
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def draw_grid(images: Tensor, classes: Sequence[str], per_class: int) -> "Image":
    """A picture with a row for every class: its name, then its images, enlarged by a whole factor.

    Rows stand in as many columns as make the picture no higher than wide. images: (K * per_class, C, H, W) in [0, 1],
    sorted by class, of one or three channels, on any device. At most the first 20 images of a class are shown and at
    most 1,000 of all, and a caption says so. Raises ImportError without Pillow.
    """
    from PIL import Image, ImageDraw, ImageFont

    each = min(per_class, MOST_IMAGES)
    shown = min(len(classes), MOST // each)
    by_class = images.detach().unflatten(0, (len(classes), per_class))[:shown, :each]
    factor = max(1, round(_CELL / max(images.shape[2:])))
    row_height = images.shape[2] * factor + _GAP

    name_font, caption_font = ImageFont.load_default(15), ImageFont.load_default(13)
    names = [_shortened(name, name_font) for name in classes[:shown]]
    left = 2 * _MARGIN + int(max(name_font.getlength(name) for name in names))
    column_width = left + each * (images.shape[3] * factor + _GAP) - _GAP
    columns = next(n for n in itertools.count(1) if -(-shown // n) * row_height <= n * column_width or n == shown)
    rows = -(-shown // columns)
    caption = _caption(shown, len(classes), per_class)
    width = max(columns * column_width, left + int(caption_font.getlength(caption))) + _MARGIN
    height = rows * row_height - _GAP + 2 * _MARGIN + (2 * _MARGIN if caption else 0)

    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for column, part in enumerate(by_class.split(rows)):
        page.paste(Image.fromarray(_mosaic(part, factor).numpy()), (column * column_width + left, _MARGIN))
    for number, name in enumerate(names):
        column, row = divmod(number, rows)
        place = column * column_width + left - _MARGIN, _MARGIN + row * row_height + (row_height - _GAP) // 2
        draw.text(place, name, fill=_INK, font=name_font, anchor="rm")
    draw.text((left, height - _MARGIN), caption, fill=_FAINT_INK, font=caption_font, anchor="ls")
    return page


def _mosaic(images: Tensor, factor: int) -> Tensor:
    """(rows, columns, C, H, W) in [0, 1] -> (height, width, 3) uint8, with white gaps between the images."""
    pixels = images.clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    pixels = pixels.expand(-1, -1, 3, -1, -1).repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    cells = pad(pixels, (0, _GAP, 0, _GAP), value=255)
    lines = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return lines[:-_GAP, :-_GAP].contiguous()


def _shortened(name: str, font: "FreeTypeFont | ImageFont") -> str:
    """`name`, cut and ended by dots where it is wider than the column of names."""
    if font.getlength(name) <= _NAME_WIDTH:
        return name
    while font.getlength(name + "...") > _NAME_WIDTH:
        name = name[:-1].rstrip(" ,")
    return name + "..."


def _caption(shown: int, num_classes: int, per_class: int) -> str:
    """What the picture leaves out; nothing if it shows everything."""
    left_out = []
    if shown < num_classes:
        left_out.append(f"{shown} of {num_classes} classes")
    if per_class > MOST_IMAGES:
        left_out.append(f"{MOST_IMAGES} of {per_class} images a class")
    return f"{' and '.join(left_out)} shown" if left_out else ""
