"""Pre-trained networks, whose penultimate features class centralization and CMI look at: loaded and drawn from."""

import copy
import json
from collections.abc import Sequence
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

Weights = list[Tensor]  # the parameters of a network


class Pool:
    """Networks of one architecture, frozen, of which an iteration sees one.

    Args:
        networks: all on `device`; or in the host's pinned memory, from where each comes while another is at work.
        device: where they work.

    Attributes:
        member: on `device`, with the weights of the network that `draw` drew last. It stays where it is, as a captured
            CUDA graph wants it.
    """

    def __init__(self, networks: Sequence[Network], device: torch.device) -> None:
        self.networks = networks
        self.member = copy.deepcopy(networks[0]).to(device)
        self._weights: list[Weights] = [list(network.parameters()) for network in networks]
        self._target: Weights = list(self.member.parameters())
        streamed = networks[0].head.weight.device.type != device.type
        self._ahead = Ahead(self.member) if streamed else None

    @classmethod
    def load(cls, folder: Path, dataset: Dataset, precision: str = "float32") -> "Pool":
        """The networks of a folder, for the images of `dataset` and on their device.

        Where nothing is held out, they may have learned from a part of the training images.

        Raises:
            UserError: if `folder` holds no pool, or one of other classes, image sizes, normalisation or holdout.
        """
        if not (folder / "pool.json").exists():
            raise UserError(
                f"{folder} is not a pool: it must hold pool.json and network-*.safetensors of ddfast pretrain"
            )
        settings = read_settings(folder / "pool.json")
        for key, value in data_settings(dataset).items():
            if settings.get(key, value) != value and (key, value) != ("holdout", 0):
                given = shortened(settings[key])
                raise UserError(
                    f"{folder} is a pool for other data: its {key} is {given}, that of the run {shortened(value)}"
                )
        paths = sorted(folder.glob("network-*.safetensors"))
        if not paths:
            raise UserError(f"{folder} holds no finished network yet; ddfast pretrain --out {folder} continues it")
        device = dataset.train.images.device
        home = device if _fit(paths, device) else torch.device("cpu")
        networks = [convert(_load(path, dataset, home), precision, device) for path in paths]
        if home != device:
            for parameter in (it for network in networks for it in network.parameters()):
                parameter.data = parameter.data.pin_memory()
        return cls(networks, device)

    def choice(self, seed: int, iteration: int) -> int:
        """The number of an iteration's random network."""
        return keyed.choice(seed, iteration, "pool member", len(self.networks))

    def draw(self, seed: int, iteration: int) -> None:
        """Gives `member` the weights of an iteration's random network; the host waits for nothing."""
        drawn = self._weights[self.choice(seed, iteration)]
        if self._ahead is None:
            _copy_weights(drawn, self._target)
        else:
            self._ahead.hand_over(drawn, self._target)
            self._ahead.fetch(self._weights[self.choice(seed, iteration + 1)])


class Ahead:
    """The network after next, on its way to the device on a stream of its own."""

    def __init__(self, like: Network) -> None:
        self._weights: Weights = list(copy.deepcopy(like).parameters())
        self._stream = torch.cuda.Stream(like.head.weight.device)
        self._fetched: Weights | None = None

    def fetch(self, weights: Weights) -> None:
        """Begins to bring `weights`, from pinned memory, once what was fetched before is handed over."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            _copy_weights(weights, self._weights)
        self._fetched = weights

    def hand_over(self, weights: Weights, target: Weights) -> None:
        if self._fetched is not weights:
            self.fetch(weights)
        torch.cuda.current_stream().wait_stream(self._stream)
        _copy_weights(self._weights, target)


@torch.no_grad()
def _copy_weights(source: Weights, target: Weights) -> None:
    torch._foreach_copy_(target, source, non_blocking=True)


def _fit(paths: Sequence[Path], device: torch.device) -> bool:
    """Whether all networks may stay on the device: beside a GPU's other work, in half of the memory it has left."""
    return device.type != "cuda" or sum(it.stat().st_size for it in paths) <= torch.cuda.mem_get_info(device)[0] // 2


def _load(path: Path, dataset: Dataset, device: torch.device) -> Network:
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


# What a pool was made with that does not say so.
_UNSAID = {"holdout": 0.0, "precision": "float32", "augmentation": "none"}


def data_settings(dataset: Dataset) -> dict[str, Any]:
    statistics = {"mean": list(dataset.mean), "std": list(dataset.std)}
    images = {"size": list(dataset.size), "channels": dataset.channels}
    return {"classes": list(dataset.classes), **images, **statistics, "holdout": dataset.held_out}


def read_settings(path: Path) -> dict[str, Any]:
    """What pool.json says, and what it leaves unsaid."""
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not the description of a pool: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not the description of a pool: it holds {shortened(settings)}")
    return _UNSAID | settings


def shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
