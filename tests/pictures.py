"""What the tests of image files share: small pictures, folders of them, and somebody who listens to loading."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddfast.data import Progress, load
from ddfast.errors import UserError

CLASSES = ("ant", "bee", "cat")


class Heard(Progress):
    """Remembers what it is told: lines, and for every meter what it counts, its total and the steps taken."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.meters: list[list[object]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def meter(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        counter: list[object] = [what, total, 0]
        self.meters.append(counter)

        def step() -> None:
            counter[2] += 1

        yield step


def picture(seed: int, width: int = 6, height: int = 6, mode: str = "RGB") -> Image.Image:
    """Random pixels."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def save(path: Path, image: Image.Image) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def save_image_folder(folder: Path, test: str = "test", width: int = 6, height: int = 6) -> Path:
    """Three classes with 4 training and 2 test images each, PNG, all different."""
    for k, name in enumerate(CLASSES):
        for split, count in (("train", 4), (test, 2)):
            for number in range(count):
                seed = 100 * (split == "train") + 10 * k + number
                save(folder / split / name / f"{number}.png", picture(seed, width, height))
    return folder


def pixels(image: Image.Image) -> Tensor:
    """(C, H, W) uint8."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def refused(data: Path | str, sentence: str, **keys: object) -> None:
    """Loading raises a `UserError` of one line that has `sentence` in it."""
    with pytest.raises(UserError) as caught:
        load(str(data), **keys)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
