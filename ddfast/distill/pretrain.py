"""The networks of a pool: trained one after another, whole whatever ends the work, and resumed where it ended."""

import dataclasses
import json
import time
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
from ddfast.augment import parse_strategy
from ddfast.data import Dataset
from ddfast.distill.graph import Recorded
from ddfast.distill.pool import data_settings, read_settings, shortened
from ddfast.distill.precision import check_precision, convolutions, dtype_of, lay
from ddfast.errors import RunFailed, UserError
from ddfast.files import write_atomically
from ddfast.networks import Network
from ddfast.ranks import ALONE, Ranks
from ddfast.report.progress import meter
from ddfast.signals import Stop
from ddfast.training import BATCH, Steps, Tick, accuracy, build_network, optimizer

LR = 0.01


@dataclass(frozen=True)
class PoolConfig:
    """How the networks of a pool are trained: SGD, learning rate 0.01 constant, batch 256.

    augmentation: operations joined by "_", or "none" as published; one of them for a batch, with parameters for every
    image. precision: of what a step computes; weights and momentum are float32 in all of them.
    """

    epochs: int = 40
    network: str = "resnet18"
    width: int | None = None
    depth: int | None = None
    norm: str | None = None
    weight_decay: float = 5e-4
    seed: int = 0
    precision: str = "float32"
    augmentation: str = "none"
    activation: str | None = None
    pooling: str | None = None


def pretrain(
    folder: Path,
    dataset: Dataset,
    count: int,
    config: PoolConfig,
    tick: Tick,
    done: Callable[[int, float], None],
    ranks: Ranks = ALONE,
    graph: bool = True,
) -> None:
    """Trains the networks that `folder` does not hold yet, until it holds `count`; each of several ranks some of them.

    Whatever ends it, it goes on from the last whole epoch. tick: called after every step. done: called with the number
    of each network and its test accuracy in percent. graph: on CUDA, whether steps are recorded and replayed.

    Raises:
        UserError: if the configuration cannot be carried out, or the folder holds a pool of another one or cannot be
            written.
    """
    dataset.check_test()
    check_precision(config.precision, dataset.train.images.device)
    parse_strategy(config.augmentation)
    network = build_network(config, dataset)  # what cannot be built must fail before the folder is claimed for it
    settings = {**dataclasses.asdict(config), "norm": network.config["norm"], **data_settings(dataset)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ranks.first_then_others():
            _claim(folder / "pool.json", settings)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error

    def own() -> None:
        for number in ranks.turns(count):
            path = _path(folder, number)
            if not path.exists():
                done(number, _pretrain_one(path, dataset, number, config, tick, graph))

    ranks.shared(own)


def trained(folder: Path) -> list[dict[str, Any]]:
    """The finished networks of a pool: "network", "accuracy" in percent and "seconds" of training, None if unknown.

    They are in the headers of the files; no weights are read. Raises `UserError` for a file that is no network.
    """
    rows = []
    for path in sorted(folder.glob("network-*.safetensors")):
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata()
            seconds = float(about["seconds"]) if "seconds" in about else None
            rows.append({"network": path.stem, "accuracy": float(about["accuracy"]), "seconds": seconds})
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a network of ddfast: {error}") from error
    return rows


def pretrain_with_progress(
    path: Path,
    dataset: Dataset,
    count: int,
    settings: PoolConfig,
    console: Console,
    stop: Stop,
    ranks: Ranks = ALONE,
    graph: bool = True,
) -> None:
    """`pretrain`, showing this rank's progress; what is finished is not counted again."""
    per_network = settings.epochs * -(-len(dataset.train.labels) // BATCH)
    tested = "held-out" if dataset.held_out else "test"
    with meter(console, "pre-train", len(ranks.turns(count)) * per_network) as bar:

        def tick() -> None:
            bar.step()
            stop.check()

        def done(number: int, reached: float) -> None:
            console.print(f"network {number + 1} of {count}: {reached:.1f} % of the {tested} images")

        pretrain(path, dataset, count, settings, tick, done, ranks, graph)


def _pretrain_one(
    path: Path, dataset: Dataset, number: int, config: PoolConfig, tick: Tick, graph: bool = True
) -> float:
    device = dataset.train.images.device
    network = build_network(config, dataset, keyed.generator(config.seed, number, "pool network", device))
    lay(network, config.precision, device)
    sgd = optimizer(network, LR, config.weight_decay)
    partial = path.with_suffix(".partial")
    begun, seconds = _load_partial(partial, network, sgd) if partial.exists() else (0, 0.0)
    start = time.monotonic() - seconds
    steps = Steps(
        network,
        sgd,
        dataset.train.images,
        dataset.train.labels,
        prepare=dataset.normalise,
        strategy=parse_strategy(config.augmentation),
        dtype=dtype_of(config.precision),
        capture=Recorded if graph and device.type == "cuda" else None,
    )
    for epoch in range(begun, config.epochs):
        shuffle = keyed.generator(config.seed, epoch, f"pool network {number} batches", torch.device("cpu"))
        with convolutions(config.precision):
            steps.epoch(shuffle, tick)
        if not all(bool(weights.isfinite().all()) for weights in network.parameters()):
            raise RunFailed(f"network {number} of {path.parent} is not finite after epoch {epoch + 1}")
        about = {"epoch": epoch + 1, "seconds": time.monotonic() - start}
        write_atomically(partial, _partial(network, sgd, about))
    reached, _ = accuracy(network, dataset)
    about = {"accuracy": reached, "epochs": config.epochs, "seconds": time.monotonic() - start}
    metadata = {"config": json.dumps(network.config), "precision": config.precision, **_words(about)}
    write_atomically(path, _packed(network.state_dict(), metadata))
    partial.unlink(missing_ok=True)
    return reached


def _partial(network: Network, sgd: torch.optim.SGD, about: dict[str, float]) -> bytes:
    momentum = {f"momentum.{name}": sgd.state[p]["momentum_buffer"] for name, p in network.named_parameters()}
    return _packed({**network.state_dict(), **momentum}, _words(about))


def _packed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """safetensors takes tensors that lie contiguously, which weights in channels_last do not."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def _words(numbers: dict[str, float]) -> dict[str, str]:
    return {name: str(number) for name, number in numbers.items()}


def _load_partial(path: Path, network: Network, sgd: torch.optim.SGD) -> tuple[int, float]:
    """Puts an unfinished network back where it was; the epochs and seconds it has behind it."""
    try:
        with safetensors.safe_open(path, "pt", device=str(network.head.weight.device)) as file:
            network.load_state_dict({name: file.get_tensor(name) for name in network.state_dict()})
            for name, parameter in network.named_parameters():
                sgd.state[parameter]["momentum_buffer"] = file.get_tensor(f"momentum.{name}")
            return int(file.metadata()["epoch"]), float(file.metadata()["seconds"])
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
        if held.get(key, value) != value:
            raise UserError(
                f"{path.parent} holds a pool of another {key}: {shortened(held[key])}, not {shortened(value)}"
            )
