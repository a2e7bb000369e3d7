"""Pre-trained networks, whose penultimate features class centralization and CMI look at: loaded and drawn from."""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ddfast import keyed
from ddfast.data import Dataset
from ddfast.distill.precision import convert
from ddfast.errors import UserError
from ddfast.networks import Network, build


class Pool:
    """Networks on one device, frozen."""

    def __init__(self, networks: list[Network]) -> None:
        self.networks = networks

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, precision: str = "float32") -> "Pool":
        """The networks of a folder, for the images of `dataset` and on their device.

        Raises:
            UserError: if `folder` holds no pool, or one of other classes, image sizes or normalisation.
        """
        if not (folder / "pool.json").exists():
            raise UserError(
                f"{folder} is not a pool: it must hold pool.json and network-*.safetensors of ddfast pretrain"
            )
        settings = read_settings(folder / "pool.json")
        for key, value in data_settings(dataset).items():
            if settings.get(key) != value:
                given = shortened(settings.get(key))
                raise UserError(
                    f"{folder} is a pool for other data: its {key} is {given}, that of the run {shortened(value)}"
                )
        paths = sorted(folder.glob("network-*.safetensors"))
        if not paths:
            raise UserError(f"{folder} holds no finished network yet; ddfast pretrain --out {folder} continues it")
        return cls([convert(_load(path, dataset), precision) for path in paths])

    def member(self, seed: int, iteration: int) -> Network:
        """The one random network of an iteration."""
        draw = keyed.uniform(seed, iteration, torch.zeros(1, dtype=torch.int64), "pool member", 1)
        return self.networks[int(draw * len(self.networks))]


def _load(path: Path, dataset: Dataset) -> Network:
    device = dataset.train.images.device
    try:
        with safetensors.safe_open(path, "pt", device=str(device)) as file:
            config = json.loads(file.metadata()["config"])
            network = build(**config, device=device, generator=torch.Generator(device))
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in network.state_dict()}
            network.load_state_dict(weights)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a network of ddfast: {error}") from error
    if config["size"] != list(dataset.size) or config["channels"] != dataset.channels:
        raise UserError(f"{path} is for images of {config['size']}, those of the run are {list(dataset.size)}")
    return network.requires_grad_(False)


def data_settings(dataset: Dataset) -> dict[str, Any]:
    return {"classes": list(dataset.classes), "mean": list(dataset.mean), "std": list(dataset.std)}


def read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not the description of a pool: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not the description of a pool: it holds {shortened(settings)}")
    return settings


def shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
