"""From the keys of a run to the things they name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from ddfast.data import Dataset, Progress, load
from ddfast.distill.config import Config
from ddfast.distill.pretrain import PoolConfig
from ddfast.errors import UserError
from ddfast.evaluate import Protocol
from ddfast.ranks import ALONE, Ranks
from ddfast.report.progress import meter


def find_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one, and each of several ranks has its own.

    cuDNN takes from then on what gives the same bits every time.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and ranks.size > 1:
        if device.index is not None:
            raise UserError(f"device must be auto, cpu or cuda where every rank takes its own GPU, got {name!r}")
        device = torch.device("cuda", ranks.local)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the streams and graphs of a run are those of the current one
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def load_data(config: Config, device: torch.device, console: Console | None = None, ranks: Ranks = ALONE) -> Dataset:
    """The data of a run, on `device`; the console, if there is one, shows what takes long.

    What must be downloaded or decoded, the first rank does, and the others find it done.
    """
    keys = {key: getattr(config, key) for key in ("holdout", "mean", "std", "image_size")}
    with ranks.first_then_others():
        return load(config.data, **keys, device=device, progress=_Shown(console) if console else None)


class _Shown(Progress):
    """Shows on a console how loading goes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    @contextmanager
    def meter(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        with meter(self._console, what, total) as bar:
            yield bar.step


def protocol_of(config: Config) -> Protocol:
    """How the run's images are evaluated."""
    return Protocol(**{key.name: getattr(config, key.name) for key in fields(Protocol)})


def pool_config(config: Config) -> PoolConfig:
    """How the pool inside a run is trained."""
    return PoolConfig(
        epochs=config.pool_epochs,
        network=config.pool_network,
        width=config.pool_width,
        depth=config.pool_depth,
        weight_decay=config.pool_weight_decay,
        seed=config.seed,
        precision=config.precision,
    )


def labels_of(config: Config, dataset: Dataset) -> Tensor:
    """The labels of the synthetic images, (K·IPC,) int64."""
    classes = torch.arange(dataset.num_classes, device=dataset.train.images.device)
    return classes.repeat_interleave(config.ipc)
