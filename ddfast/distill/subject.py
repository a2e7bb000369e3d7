"""What `ddfast evaluate` evaluates: the images of a run, or images that ddfast did not make."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from ddfast.data import Dataset
from ddfast.data.fingerprint import Fingerprint
from ddfast.distill.config import Config, defaults
from ddfast.distill.folder import RunFolder
from ddfast.distill.setup import find_device, labels_of, load_data, protocol_of
from ddfast.errors import UserError
from ddfast.evaluate import evaluate_all, read_images
from ddfast.files import write_atomically
from ddfast.partition import check_partition
from ddfast.ranks import ALONE, Ranks
from ddfast.signals import Stop
from ddfast.training import build_network


@dataclass(frozen=True)
class Subject:
    """Images and all that their evaluation needs.

    images: (N, C, H, W) normalised as `dataset` is. labels: (N,), or soft (N, K). config: what was given, on top of
    what a run has. given: what was given alone. about: told beside the images' accuracy. kept: told of a run beside its
    own evaluation. folder, stem: where the evaluation is written. ranks: those that share the work, the first of which
    writes.
    """

    images: Tensor
    labels: Tensor
    dataset: Dataset
    config: Config
    given: dict[str, Any]
    about: dict[str, Any]
    folder: Path
    stem: str
    ranks: Ranks = ALONE
    kept: dict[str, Any] = field(default_factory=dict)

    def config_of(self, network: str) -> Config:
        """The keys of an evaluation by the network of that name, or by the subject's own; refuses what is not there."""
        config = self.config.override(**{**self.given, "network": network or self.config.network})
        build_network(config, self.dataset)
        self._check_place(network)
        return config

    def _check_place(self, network: str) -> None:
        """Refuses to write over anything but an earlier evaluation of the same images."""
        path = self._path(network)
        if "source" not in self.about or not path.exists():
            return
        try:
            earlier = json.loads(path.read_text())["distilled"]["source"] == self.about["source"]
        except (OSError, ValueError, KeyError, TypeError):
            earlier = False
        if not earlier:
            raise UserError(f"{path} is there and no evaluation of the same images: --out names another folder")

    def _path(self, network: str) -> Path:
        return self.folder / (f"{self.stem}-{network}.json" if network else f"{self.stem}.json")

    def evaluate(self, config: Config, console: Console, stop: Stop) -> dict[str, Any]:
        """What the network's evaluation.json holds; it can be written, or nothing is begun."""
        RunFolder(self.folder, writes=self.ranks.first).open()
        shown = self.images, self.labels, self.dataset, protocol_of(config)
        found = evaluate_all(*shown, config.whole_epochs, console, stop, self.ranks)
        found["distilled"] |= self.about
        return found

    def save(self, network: str, evaluation: dict[str, Any]) -> None:
        """Writes evaluation.json, or evaluation-NETWORK.json for a network that was asked for by name."""
        if self.ranks.first:
            whole = evaluation if network else {**evaluation, **self.kept}
            write_atomically(self._path(network), json.dumps(whole, indent=1).encode())


def find_subject(
    path: Path,
    given: dict[str, Any],
    out: Path | None,
    console: Console,
    ranks: Ranks = ALONE,
    *,
    accept_data: bool = False,
    labels: Path | None = None,
    normalised: bool | None = None,
) -> Subject:
    """The images of a run folder, or of what `read_images` reads.

    given: the keys that were given. out: a folder for the results of images that are no run's; None: where they lie.
    console: shows what takes long. accept_data: takes other data than a run was begun with. labels, normalised: of
    images that are no run's, as `read_images` takes them.

    Raises:
        UserError: if there is nothing to evaluate, or `given` does not fit.
    """
    if (path / "config.toml").exists():
        own = {"out": out, "labels": labels, "normalised": normalised}
        return _of_run(path, {**given, **own}, console, ranks, accept_data)
    if not path.exists():
        raise UserError(f"{path} holds no run and is no file of images")
    if "data" not in given:
        raise UserError(f"{path} holds no run, and for images --data must name the data set that tests them")
    config = defaults(given["data"]).replace(**given)
    dataset = load_data(config, find_device(config.device, ranks), console, ranks)
    dataset.check_test()
    found = read_images(path, dataset, labels=labels, normalised=normalised)
    console.print(Text(found.taken_as), soft_wrap=True)
    config = config.replace(**{"partition": found.partition, **given})
    check_partition(config.partition, dataset.size)
    source, folder = str(path.resolve()), out or path.resolve().parent
    stem = f"{path.resolve().stem}-evaluation"
    about = {"source": source, **({"labels": "soft"} if found.labels.ndim == 2 else {})}
    return Subject(found.images, found.labels, dataset, config, given, about, folder, stem, ranks)


def _of_run(path: Path, given: dict[str, Any], console: Console, ranks: Ranks, accept_data: bool) -> Subject:
    for key in ("image_size", "mean", "std", "holdout", "partition", "out", "labels", "normalised"):
        if given.pop(key, None) is not None:
            raise UserError(f"{key} must not be given with a run: {path} has its own")
    device = find_device(given.get("device", "auto"), ranks)
    folder = RunFolder(path)
    config = folder.load_config().replace(**given)
    state = folder.load_state(device)
    if state is None:
        raise UserError(f"{path} holds no checkpoint yet; ddfast distill --resume continues it")
    dataset = load_data(config, device, console, ranks)
    if notice := folder.check_data(dataset.name, Fingerprint.of(dataset), accept_data):
        console.print(notice)
    dataset.check_test()
    labels = labels_of(config, dataset)
    kept = {name: row for name, row in folder.evaluation().items() if name == "best"}
    return Subject(state.images, labels, dataset, config, given, state.course(), path, "evaluation", ranks, kept)
