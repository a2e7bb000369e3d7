"""The run folder: what a run leaves on disk, always whole, and what it resumes from."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddfast.data.fingerprint import Fingerprint
from ddfast.distill.config import Config
from ddfast.distill.plan import Plan
from ddfast.distill.queue import Queue
from ddfast.errors import RunFailed, UserError
from ddfast.files import write_atomically

_DATA = "data.json"  # the fingerprint of the data


@dataclass
class State:
    """All that changes during a run: with the configuration it determines everything that comes after.

    images: (K·IPC, C, H, W) float32 normalised, sorted by class. momentum: the same, SGD's buffer. iteration: how many
    are done. threads, plan, ranks: what the run was computed with, kept because rounding depends on them. queue: the
    networks of IDM, None before the first iteration. seconds: what the iterations took, evaluations not counted. Of
    several ranks each has the images of its own classes.
    """

    images: Tensor
    momentum: Tensor
    iteration: int
    threads: int
    plan: Plan
    queue: Queue | None = None
    ranks: int = 1
    seconds: float = 0.0

    def course(self) -> dict[str, float]:
        """How far the run has come, as the points of its curve and its evaluation say it."""
        return {"iteration": self.iteration, "distill_seconds": round(self.seconds, 3)}


class RunFolder:
    """The files of a run by their meaning; a failing disk ends the run and leaves the last checkpoint.

    Args:
        path: the folder.
        writes: whether anything is written: of several ranks the first one does.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self._writes = path, writes

    def check(self, resume: bool) -> None:
        """Refuses a folder that holds a run where a new one is meant, and one that holds none where it is to resume."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; --out must name one")
        if resume and not (self.path / "config.toml").exists():
            raise UserError(f"{self.path} holds no run")
        if not resume and (self.path / "config.toml").exists():
            raise UserError(f"{self.path} already holds a run; --resume continues it, --out starts another one")

    def open(self) -> None:
        """Makes the folder, if need be."""
        if not self._writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error

    def load_config(self) -> Config:
        return Config.load(self.path / "config.toml")

    def save_config(self, config: Config) -> None:
        self.write("config.toml", config.dumps().encode())

    def write(self, name: str, content: bytes) -> None:
        if self._writes:
            with self._disk():
                write_atomically(self.path / name, content)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, json.dumps(content, indent=1).encode())

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"{self.path} cannot be written: {error.strerror}; the last checkpoint is kept for --resume"
            ) from error

    def save_state(self, state: State, labels: Tensor, metadata: dict[str, Any]) -> None:
        """The checkpoint, and the synthetic set as others read it."""
        images = state.images.cpu()
        numbers = {name: getattr(state, name) for name in ("iteration", "threads", "ranks", "seconds")}
        numbers["plan"] = asdict(state.plan)
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        words["iteration"] = str(state.iteration)
        self.write("synthetic.safetensors", safetensors.torch.save({"images": images, "labels": labels.cpu()}, words))
        tensors = {"images": images, "momentum": state.momentum.cpu()}
        if state.queue is not None:
            tensors |= {f"queue.{name}": tensor.cpu() for name, tensor in vars(state.queue).items()}
        self.write("checkpoint.safetensors", safetensors.torch.save(tensors, {"state": json.dumps(numbers)}))

    def load_state(self, device: torch.device, rows: slice = slice(None)) -> State | None:
        """The checkpoint, with these rows of the images; None where a run was ended before its first one."""
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "pt", device=str(device)) as file:
                numbers = json.loads(file.metadata()["state"])
                numbers["plan"] = Plan(**numbers["plan"])
                state = State(*(file.get_slice(name)[rows] for name in ("images", "momentum")), **numbers)
                if "queue.weights" in file.keys():  # noqa: SIM118
                    state.queue = Queue(*(file.get_tensor(f"queue.{field.name}") for field in fields(Queue)))
                return state
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a checkpoint of ddfast: {error}") from error

    def check_data(self, name: str, found: Fingerprint, accept: bool) -> str | None:
        """Refuses other data than the run was begun with, unless `accept`; returns what else is to be said about them.

        A run of an earlier version is compared by what its synthetic set says of its data.
        """
        known = self._fingerprint()
        if known is None:
            return None
        difference = known.difference(found)
        if difference is not None:
            told = f"{name} is not the data that {self.path} was begun with: {difference}"
            if not accept:
                raise UserError(f"{told}; --data names where these are now, --accept-data takes the others")
            return f"{told}; they are taken all the same"
        if known.decoded_differently(found):
            return f"{name} has the images that {self.path} was begun with, decoded a little differently"
        return None

    def save_data(self, fingerprint: Fingerprint) -> None:
        """Keeps the fingerprint of the data, for `check_data`; one that is there already is not written again."""
        if not (self.path / _DATA).exists() or self._fingerprint() != fingerprint:
            self.write_json(_DATA, fingerprint.to_json())

    def _fingerprint(self) -> Fingerprint | None:
        """That of the run's data, or as much of it as an earlier version kept; None before the first checkpoint."""
        path, synthetic = self.path / _DATA, self.path / "synthetic.safetensors"
        try:
            if path.exists():
                return Fingerprint.from_json(json.loads(path.read_text()))
            if not synthetic.exists():
                return None
            with safetensors.safe_open(synthetic, "pt") as file:
                words = {key: json.loads(file.metadata()[key]) for key in ("classes", "mean", "std")}
                shape = file.get_slice("images").get_shape()[1:]
            return Fingerprint.from_json({**words, "shape": shape})
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path if path.exists() else synthetic} cannot be read: {error}") from error

    def load_classes(self) -> tuple[str, ...]:
        """The names of the classes, from the synthetic set."""
        path = self.path / "synthetic.safetensors"
        try:
            with safetensors.safe_open(path, "pt") as file:
                return tuple(json.loads(file.metadata()["classes"]))
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a synthetic set of ddfast: {error}") from error

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, at once: the file is closed, so nothing is left in a buffer."""
        if self._writes:
            with self._disk(), open(self.path / "metrics.jsonl", "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a .jsonl file; a line torn by a kill is not one."""
        path = self.path / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Adds a line to a short .jsonl file, in the place of one of the same iteration."""
        if self._writes:
            self._rewrite(name, [*(old for old in self.lines(name) if old["iteration"] != line["iteration"]), line])

    def cut(self, iteration: int) -> None:
        """Drops what was recorded after `iteration`, which will be done again."""
        for name in ("metrics.jsonl", "curve.jsonl"):
            if self._writes and (self.path / name).exists():
                self._rewrite(name, [line for line in self.lines(name) if line["iteration"] <= iteration])

    def _rewrite(self, name: str, lines: list[dict[str, Any]]) -> None:
        self.write(name, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def evaluation(self) -> dict[str, Any]:
        path = self.path / "evaluation.json"
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not an evaluation of ddfast: {error}") from error
