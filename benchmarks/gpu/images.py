"""Real images in one small file: training images as JPEG without chroma subsampling, test images without loss.

Images lie side by side in mosaics. Their sides are whole blocks of 8 pixels, so that no image touches another one's
block. That a distillation from these pixels is worth what one from the exact pixels is, `compare` shows on a CPU:

    python -m benchmarks.gpu images FOLDER      distils from FOLDER's exact training images and from the packed ones
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILES = (8, 25)  # images of a mosaic: down, across
QUALITY = 93  # of a JPEG; `python -m benchmarks.gpu images` says what it costs
TESTED = 5_000  # test images: without loss a third of all has to stay at home
FORMATS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "jpeg", "quality": QUALITY, "subsampling": 0, "optimize": True},
    "webp": {"format": "webp", "lossless": True, "quality": 100, "method": 4},
}
SPLITS = {"train": "jpeg", "test": "webp"}

Arrays = dict[str, NDArray[Any]]


def pack(source: Path, target: Path, train: int | None = None, test: int = TESTED) -> dict[str, Any]:
    """Packs the train.npz and test.npz of a folder, and returns what was packed in numbers.

    Of each split the first images of every class are taken, as many of each, in the order in which they lie there.
    """
    packed, about = {}, {}
    for split, kind in SPLITS.items():
        with np.load(source / f"{split}.npz") as file:
            images, labels = file["images"], file["labels"]
        rows = first_of_each(labels, train if split == "train" else test)
        images, labels = images[rows], labels[rows]
        data = [encode(mosaic, kind) for mosaic in mosaics(images)]
        packed |= {
            f"{split}.data": np.frombuffer(b"".join(data), np.uint8),
            f"{split}.ends": np.cumsum([len(one) for one in data]),
            f"{split}.labels": labels,
        }
        about[split] = {"images": len(rows), "format": FORMATS[kind], "bytes": sum(map(len, data))}
    about["shape"] = list(images.shape[1:])
    packed["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    packed["classes"] = np.frombuffer((source / "classes.txt").read_bytes(), np.uint8)
    np.savez(target, **packed)
    return about


def unpack(packed: Path, target: Path) -> Path:
    """The folder with train.npz and test.npz that ddfast reads."""
    target.mkdir(parents=True, exist_ok=True)
    with np.load(packed) as file:
        shape = json.loads(file["about"].tobytes())["shape"]
        for split in SPLITS:
            data, ends, labels = file[f"{split}.data"].tobytes(), file[f"{split}.ends"], file[f"{split}.labels"]
            starts = [0, *ends[:-1]]
            tiles = [tiles_of(decode(data[a:b]), shape) for a, b in zip(starts, ends, strict=True)]
            np.savez(target / f"{split}.npz", images=np.concatenate(tiles)[: len(labels)], labels=labels)
        (target / "classes.txt").write_bytes(file["classes"].tobytes())
    return target


def first_of_each(labels: NDArray[Any], count: int | None) -> NDArray[Any]:
    """The rows of the first `count` images, the same number of every class; of all images where `count` is None."""
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    each = count // (int(labels.max()) + 1)
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:each] for k in range(int(labels.max()) + 1)]))


def mosaics(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Images (N, H, W, C) as pictures (rows·H, columns·W, C); the last one is filled up with black."""
    down, across = TILES
    _, height, width, channels = images.shape
    for first in range(0, len(images), down * across):
        tile = images[first : first + down * across]
        full = np.zeros((down * across, height, width, channels), np.uint8)
        full[: len(tile)] = tile
        grid = full.reshape(down, across, height, width, channels).transpose(0, 2, 1, 3, 4)
        yield grid.reshape(down * height, across * width, channels)


def tiles_of(mosaic: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    down, across = TILES
    height, width, channels = shape
    grid = mosaic.reshape(down, height, across, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, *shape)


def encode(picture: NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, **FORMATS[kind])
    return file.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
