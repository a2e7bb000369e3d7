"""From the keys of a run to the things they name."""

import torch
from torch import Tensor

from ddfast.data import Dataset, load
from ddfast.distill.config import Config
from ddfast.distill.pretrain import PoolConfig
from ddfast.errors import UserError
from ddfast.evaluate import Protocol


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return device


def load_data(config: Config, device: torch.device) -> Dataset:
    return load(config.data, holdout=config.holdout, mean=config.mean, std=config.std, device=device)


def protocol_of(config: Config) -> Protocol:
    """How the run's images are evaluated."""
    keys = ("network", "width", "depth", "norm", "augmentation", "partition", "epochs", "repeats", "seed")
    return Protocol(**{key: getattr(config, key) for key in keys})


def pool_config(config: Config) -> PoolConfig:
    """How the pool inside a run is trained."""
    return PoolConfig(
        epochs=config.pool_epochs,
        network=config.pool_network,
        width=config.pool_width,
        depth=config.pool_depth,
        norm=config.norm,
        seed=config.seed,
    )


def labels_of(config: Config, dataset: Dataset) -> Tensor:
    """The labels of the synthetic images, (K·IPC,) int64."""
    classes = torch.arange(dataset.num_classes, device=dataset.train.images.device)
    return classes.repeat_interleave(config.ipc)
