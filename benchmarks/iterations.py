"""Whole iterations on random images, where time and memory do not depend on what the images show: the published loop's
and ddfast's."""

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.published import Published, save_network
from ddfast import keyed
from ddfast.data import Dataset, Split
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.loop import Distiller
from ddfast.distill.plan import make_plan
from ddfast.distill.pool import Pool
from ddfast.distill.precision import convert
from ddfast.networks import Network, build
from ddfast.ranks import ALONE, Ranks
from ddfast.training import build_network

LOSSES = {  # weights as published for CIFAR-10 at IPC 10
    "dm": {"covariance_weight": 0.0},
    "iid-dm": {"covariance_weight": 0.01, "centralization_weight": 0.05},
    "cmi-dm": {"covariance_weight": 0.0, "cmi_weight": 8000.0},
    "all": {"covariance_weight": 0.01, "centralization_weight": 0.05, "cmi_weight": 8000.0},
}
IDM = {"method": "idm", "partition": 2, "image_lr": 0.2, "covariance_weight": 0.0, "cross_entropy_weight": 0.5}
CONTENDERS = ("published", "float32", "bf16")


@dataclass(frozen=True)
class Setting:
    """What an iteration costs depends on this alone."""

    classes: int = 10
    size: int = 32
    ipc: int = 10
    real: int = 256  # images of a class in an iteration
    losses: str = "iid-dm"
    budget: str = "512MiB"
    width: int = 128
    depth: int = 3
    pool_width: int = 64

    def config(self, precision: str) -> Config:
        return Config(
            ipc=self.ipc,
            batch_real=self.real,
            width=self.width,
            depth=self.depth,
            pool="random weights",
            memory_budget=self.budget,
            precision=precision,
            **(LOSSES | {"idm": IDM})[self.losses],
        )

    def dataset(self, device: torch.device) -> Dataset:
        """Twice as many real images as an iteration takes."""
        count = 2 * self.real * self.classes
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, self.size, self.size), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % self.classes
        train = Split.from_tensors(images, labels, self.classes)
        test = Split.from_tensors(images[: self.classes], labels[: self.classes], self.classes)
        names = [str(k) for k in range(self.classes)]
        return Dataset.from_splits("random", train, test, names).to(device)


def add_settings(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """An option for every field of Setting, each of which takes several values."""
    for field in fields(Setting):
        kind, default = type(field.default), defaults.get(field.name, field.default)
        default = default if isinstance(default, list) else [default]
        choices = list(LOSSES) if field.name == "losses" else None
        option, shown = f"--{field.name.replace('_', '-')}", f"default: {' '.join(map(str, default))}"
        parser.add_argument(option, nargs="+", type=kind, default=default, choices=choices, help=shown)


def settings(options: argparse.Namespace) -> list[Setting]:
    """Every combination of what was given."""
    names = [field.name for field in fields(Setting)]
    return [Setting(*values) for values in itertools.product(*(getattr(options, name) for name in names))]


@contextlib.contextmanager
def contender(name: str, setting: Setting, device: torch.device, graph: bool = True) -> Iterator[Callable[[], object]]:
    """An iteration of `published`, or of ddfast in the precision that `name` is, each call the next one of a run.

    graph: on CUDA, ddfast's is captured; a profile does not tell the phases of a graph.
    """
    config = setting.config("float32" if name == "published" else name).replace(graph=graph)
    if name == "published":
        networks = pool_networks(config, setting, device)
        with tempfile.TemporaryDirectory() as folder:
            files = [save_network(network, Path(folder) / str(i)) for i, network in enumerate(networks)]
            yield Published(config, setting.dataset(device), noise(setting, device), files).iterate
        return
    distiller, state = engine(config, setting, device)
    yield lambda: distiller.report(distiller.iterate(state))


def engine(config: Config, setting: Setting, device: torch.device, ranks: Ranks = ALONE) -> tuple[Distiller, State]:
    """ddfast about to begin a run: on a rank's own classes, where there are several."""
    dataset = setting.dataset(device)
    network = convert(build_network(config, dataset).requires_grad_(False), config.precision, device)
    networks = [convert(member, config.precision, device) for member in pool_networks(config, setting, device)]
    pool = Pool(networks, device) if networks else None
    plan = make_plan(config, dataset, network, pool, ranks.size)
    images = noise(setting, device)[ranks.parts(setting.classes, setting.ipc)[ranks.rank]]
    state = State(images, torch.zeros_like(images), 0, torch.get_num_threads(), plan, ranks=ranks.size)
    return Distiller(config, dataset, network, pool, plan, ranks), state


def noise(setting: Setting, device: torch.device) -> Tensor:
    return torch.randn(setting.classes * setting.ipc, 3, setting.size, setting.size, device=device)


def pool_networks(config: Config, setting: Setting, device: torch.device) -> list[Network]:
    """Two of random weights, where the losses look at any."""
    networks = []
    for number in range(2 if config.needs_pool else 0):
        generator = keyed.generator(0, number, "pool network", device)
        shape = {"channels": 3, "num_classes": setting.classes, "size": (setting.size, setting.size)}
        network = build("resnet18", **shape, width=setting.pool_width, device=device, generator=generator)
        networks.append(network.requires_grad_(False))
    return networks
