"""The course of a run for TensorBoard."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddfast.errors import UserError


class Board:
    """Writes events into a folder, which the first of them makes; does nothing where none are wanted.

    Args:
        path: the folder.
        wanted: whether anything is written.

    Raises:
        UserError: without TensorBoard, if it is wanted.
    """

    def __init__(self, path: Path, wanted: bool) -> None:
        self._path, self._wanted, self._begun = path, wanted, 0
        if wanted:
            _summary_writer()

    @cached_property
    def _writer(self) -> Any:
        # TensorBoard shows nothing older from this step on: it was written after the checkpoint, and comes again.
        return _summary_writer()(str(self._path), purge_step=self._begun + 1)

    def begin(self, iteration: int) -> None:
        """Goes on after `iteration`."""
        self._begun = iteration

    def scalars(self, group: str, iteration: int, values: Mapping[str, float]) -> None:
        if self._wanted:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, iteration)

    def picture(self, name: str, iteration: int, pixels: NDArray[np.uint8]) -> None:
        """pixels: (H, W, 3)."""
        if self._wanted:
            self._writer.add_image(name, pixels, iteration, dataformats="HWC")

    def flush(self) -> None:
        """Puts what was written on disk, before a checkpoint says that it need not come again."""
        if "_writer" in self.__dict__:
            self._writer.flush()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


def _summary_writer() -> Any:
    try:
        from PIL import Image  # noqa: F401 - what TensorBoard encodes pictures with
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboard needs packages that are missing: pip install 'ddfast[tensorboard]'") from error
    return SummaryWriter
