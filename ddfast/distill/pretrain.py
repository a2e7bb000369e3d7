"""The networks of a pool: trained one after another, whole whatever ends the work, and resumed where it ended."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor

from ddfast import keyed
from ddfast.data import Dataset
from ddfast.distill.pool import data_settings, read_settings, shortened
from ddfast.errors import UserError
from ddfast.files import write_atomically
from ddfast.networks import Network
from ddfast.report.progress import meter
from ddfast.signals import Stop
from ddfast.training import BATCH, Tick, accuracy, build_network, optimizer, train_epoch

LR = 0.01


@dataclass(frozen=True)
class PoolConfig:
    """How the networks of a pool are trained: SGD, learning rate 0.01 constant, batch 256, no augmentation."""

    epochs: int = 40
    network: str = "resnet18"
    width: int | None = None
    depth: int | None = None
    norm: str | None = None
    weight_decay: float = 5e-4
    seed: int = 0
    activation: str | None = None
    pooling: str | None = None


def pretrain(
    folder: Path, dataset: Dataset, count: int, config: PoolConfig, tick: Tick, done: Callable[[int, float], None]
) -> None:
    """Trains the networks that `folder` does not hold yet, until it holds `count`.

    Whatever ends it, it goes on from the last whole epoch. tick: called after every step. done: called with the number
    of each network and its test accuracy in percent.

    Raises:
        UserError: if the folder holds a pool of another configuration, or cannot be written.
    """
    network = build_network(config, dataset)  # what cannot be built must fail before the folder is claimed for it
    settings = {**dataclasses.asdict(config), "norm": network.config["norm"], **data_settings(dataset)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder / "pool.json", settings)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    for number in range(count):
        path = _path(folder, number)
        if not path.exists():
            done(number, _pretrain_one(path, dataset, number, config, tick))


def pretrain_with_progress(
    path: Path, dataset: Dataset, count: int, settings: PoolConfig, console: Console, stop: Stop
) -> None:
    """`pretrain`, showing its progress; what is finished is not counted again."""
    per_network = settings.epochs * -(-len(dataset.train.labels) // BATCH)
    with meter(console, "pre-train", count * per_network) as bar:

        def tick() -> None:
            bar.step()
            stop.check()

        def done(number: int, reached: float) -> None:
            console.print(f"network {number + 1} of {count}: {reached:.1f} % of the test images")

        pretrain(path, dataset, count, settings, tick, done)


def _pretrain_one(path: Path, dataset: Dataset, number: int, config: PoolConfig, tick: Tick) -> float:
    device = dataset.train.images.device
    network = build_network(config, dataset, keyed.generator(config.seed, number, "pool network", device))
    sgd = optimizer(network, LR, config.weight_decay)
    partial = path.with_suffix(".partial")
    begun = _load_partial(partial, network, sgd) if partial.exists() else 0
    for epoch in range(begun, config.epochs):
        shuffle = keyed.generator(config.seed, epoch, f"pool network {number} batches", torch.device("cpu"))
        split = dataset.train
        train_epoch(
            network,
            sgd,
            split.images,
            split.labels,
            prepare=dataset.normalise,
            strategy=(),
            generator=shuffle,
            tick=tick,
        )
        write_atomically(partial, _partial(network, sgd, epoch + 1))
    reached, _ = accuracy(network, dataset)
    metadata = {"config": json.dumps(network.config), "accuracy": str(reached), "epochs": str(config.epochs)}
    write_atomically(path, _packed(network.state_dict(), metadata))
    partial.unlink(missing_ok=True)
    return reached


def _partial(network: Network, sgd: torch.optim.SGD, epoch: int) -> bytes:
    momentum = {f"momentum.{name}": sgd.state[p]["momentum_buffer"] for name, p in network.named_parameters()}
    return _packed({**network.state_dict(), **momentum}, {"epoch": str(epoch)})


def _packed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """safetensors takes tensors that lie contiguously, which weights in channels_last do not."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def _load_partial(path: Path, network: Network, sgd: torch.optim.SGD) -> int:
    """Puts an unfinished network back where it was; the epochs it has behind it."""
    try:
        with safetensors.safe_open(path, "pt", device=str(network.head.weight.device)) as file:
            network.load_state_dict({name: file.get_tensor(name) for name in network.state_dict()})
            for name, parameter in network.named_parameters():
                sgd.state[parameter]["momentum_buffer"] = file.get_tensor(f"momentum.{name}")
            return int(file.metadata()["epoch"])
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not an unfinished network of ddfast: {error}") from error


def _path(folder: Path, number: int) -> Path:
    return folder / f"network-{number:04d}.safetensors"


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new pool, or refuses to mix in networks of others."""
    if not path.exists():
        write_atomically(path, json.dumps(settings, indent=1).encode())
        return
    held = read_settings(path)
    for key, value in settings.items():
        if held.get(key) != value:
            raise UserError(
                f"{path.parent} holds a pool of another {key}: {shortened(held.get(key))}, not {shortened(value)}"
            )
