"""From encoded images to arrays of uint8: Pillow decodes them, in a few threads."""

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddfast.data.progress import Progress
from ddfast.data.source import Source
from ddfast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 256  # images that the threads are given at a time, and the most that an interruption waits for


class _Picture(NamedTuple):
    name: str
    pixels: NDArray[np.uint8]  # (H, W, 3)
    grey: bool


def decode(source: Source, image_size: int | None, progress: Progress) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The training and the test images, (N, H, W, 3), or (N, H, W, 1) if those of both splits are all grey.

    image_size: in pixels; every image is scaled, antialiased, until its shorter side has so many, and the middle is cut
    out. None: nothing is scaled.
    Raises `UserError` as `open_image` does, and for the first image that has not the size of those before it.
    """
    training = len(source.train.labels)
    total = training + len(source.test.labels)
    grey = True
    with progress.meter(f"decode {source.name}", total) as step:
        for row, picture in enumerate(_pictures(chain(source.train.images, source.test.images), image_size)):
            if row == 0:
                first, arrays = picture, np.empty((total, *picture.pixels.shape), np.uint8)
            if picture.pixels.shape != first.pixels.shape:
                sizes = f"{picture.name} is {_size(picture)} pixels but {first.name} {_size(first)}"
                raise UserError(f"{sizes}: images must have one size, or be brought to it by image_size")
            arrays[row] = picture.pixels
            grey = grey and picture.grey
            step()
    kept = arrays[..., :1] if grey else arrays
    return kept[:training], kept[training:]


def _pictures(images: Iterable[tuple[str, str | bytes]], image_size: int | None) -> Iterator[_Picture]:
    """The decoded images, in their order."""
    remaining = iter(images)
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as threads:
        while batch := list(islice(remaining, _BATCH)):
            yield from threads.map(partial(_picture, image_size=image_size), batch)


def _picture(image: tuple[str, str | bytes], image_size: int | None) -> _Picture:
    name, content = image
    opened, grey = open_image(name, content)
    if image_size is not None:
        opened = _resized(opened, image_size)
    return _Picture(name, np.asarray(opened), grey)


def open_image(name: str, content: str | bytes) -> tuple["Image", bool]:
    """The image of a file or of its bytes, in RGB and turned as its EXIF orientation says, and whether it is grey.

    Raises `UserError`, calling the image `name`, where it is broken or would lose bits, and without Pillow.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise UserError("image files are read by Pillow, which is missing: pip install 'ddfast[images]'") from error
    try:
        with Image.open(content if isinstance(content, str) else io.BytesIO(content)) as file:
            deep, grey = _is_deep(file), file.mode in ("1", "L")
            pixels = ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image") from error
    except Exception as error:  # every format has errors of its own
        raise UserError(f"{name} cannot be decoded: {getattr(error, 'strerror', None) or error}") from error
    if deep:
        raise UserError(f"{name} has more than 8 bits a channel, which would be lost")
    return pixels, grey


def _is_deep(file: Any) -> bool:
    """Whether a channel has more than 8 bits; of several channels Pillow keeps 8 bits each without a word."""
    if file.mode[0] in "IF":
        return True
    if file.format == "PNG":
        return ";16" in str(file.tile)
    if file.format == "TIFF":
        return max(file.tag_v2.get(258, (1,))) > 8  # BitsPerSample
    return file.format == "PPM" and isinstance(file.tile[0][3], tuple) and file.tile[0][3][1] > 255  # value of white


def _resized(image: "Image", size: int) -> "Image":
    """The middle of the image, (size, size), once its shorter side has `size` pixels."""
    from PIL import Image

    width, height = (size * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, top, left + size, top + size))


def _size(picture: _Picture) -> str:
    height, width, _ = picture.pixels.shape
    return f"{width}x{height}"
