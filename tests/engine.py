"""What the engine's tests share: tiny data, tiny runs, and processes of the command line that start at once.

Importing PyTorch takes longer than all that a tiny run does. So one process imports it, and forks a child for every
command: true processes, with their own exit codes, signals, limits and memory.
"""

import atexit
import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from rich.console import Console
from torch import Tensor

from ddfast import keyed
from ddfast.data import Dataset, Split
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.loop import Distiller
from ddfast.distill.plan import Plan
from ddfast.distill.pool import Pool
from ddfast.distill.pretrain import PoolConfig, pretrain
from ddfast.distill.run import Run
from ddfast.training import build_network

WHOLE = Plan(10**6, 10**6, 10**6, 10**6)  # everything at once
SECONDS = 100  # after which a child is ended

SMALL = {"device": "cpu", "width": 8, "depth": 2, "epochs": 2, "repeats": 1}
POOL = {"pool_count": 2, "pool_epochs": 2, "pool_network": "convnet", "pool_width": 4, "pool_depth": 2}
ALL = {"mean_weight": 1.0, "covariance_weight": 0.01, "centralization_weight": 0.001, "cmi_weight": 5.0}


def toy(
    classes: int = 3, per_class: int = 12, test: int = 5, size: int = 8, channels: int = 1, seed: int = 0
) -> Dataset:
    """Random images that are all different, with a bright row and column by which a class can be told."""
    return Dataset.from_splits(
        "toy",
        _split(classes, per_class, size, channels, seed),
        _split(classes, test, size, channels, seed + 1),
        [f"c{k}" for k in range(classes)],
    )


def _split(classes: int, per_class: int, size: int, channels: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    images = rng.integers(0, 160, (len(labels), size, size, channels))
    images[np.arange(len(labels)), labels % size] += 90
    images[np.arange(len(labels)), :, labels // size] += 5
    return Split.from_arrays(images.astype(np.uint8), labels, classes)


def save_npz(folder: Path, dataset: Dataset) -> Path:
    """`dataset` as the folder that --data takes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.savez(folder / f"{name}.npz", images=split.images.permute(0, 2, 3, 1).numpy(), labels=split.labels.numpy())
    (folder / "classes.txt").write_text("\n".join(dataset.classes))
    return folder


def make_pool(folder: Path, dataset: Dataset, count: int = 3, **keys: Any) -> Pool:
    settings = PoolConfig(**{"epochs": 1, "network": "convnet", "width": 4, "depth": 2, **keys})
    pretrain(folder, dataset, count, settings, lambda: None, lambda number, reached: None)
    return Pool.load(folder, dataset)


def make_distiller(config: Config, dataset: Dataset, pool: Pool | None = None, plan: Plan | None = None) -> Distiller:
    network = build_network(config, dataset).requires_grad_(False)
    return Distiller(config, dataset, network, pool, plan or WHOLE)


def make_state(config: Config, dataset: Dataset, seed: int = 0) -> State:
    """Images of noise, with a momentum that is not zero."""
    shape = (dataset.num_classes * config.ipc, dataset.channels, *dataset.size)
    generator = keyed.generator(seed, 0, "test", torch.device("cpu"))
    images, momentum = torch.randn(2, *shape, generator=generator)
    return State(images, 0.01 * momentum, 0, 1, WHOLE)


def make_config(folder: Path) -> Config:
    """A run of six iterations with all losses, on data and with a pool in `folder`, without evaluation."""
    make_pool(folder / "pool", toy(), 2)
    keys = {**SMALL, **ALL, "data": str(save_npz(folder / "data", toy())), "pool": str(folder / "pool"), "epochs": 1}
    return Config(**keys, ipc=2, batch_real=8, iterations=6, checkpoint_every=2, eval_every=0)


def run_here(config: Config, path: Path, resume: bool = False) -> dict[str, Any]:
    """A run in this process, without a word."""
    return Run(config, path, resume, Console(quiet=True))()


def sgd_step(weights: list[Tensor], held: list[Tensor], gradients: Sequence[Tensor], rate: float, decay: float) -> None:
    """A step with momentum 0.9 and weight decay, by its formula."""
    with torch.no_grad():
        for weight, momentum, gradient in zip(weights, held, gradients, strict=True):
            momentum.mul_(0.9).add_(gradient + decay * weight)
            weight.sub_(rate * momentum)


def record_keys(patch: pytest.MonkeyPatch) -> list[tuple[int, int, int, str]]:
    """The (seed, iteration, class, purpose) of all that is drawn from then on, tests' own images aside."""
    keys: list[tuple[int, int, int, str]] = []
    bits, integers = keyed.bits, keyed.integers

    def record_bits(seed: int, iteration: int | Tensor, classes: Tensor, purpose: str, count: int) -> Tensor:
        numbers = torch.as_tensor(iteration).flatten().tolist()
        keys.extend((seed, number, label, purpose) for number in numbers for label in classes.tolist())
        return bits(seed, iteration, classes, purpose, count)

    def record_integers(seed: int, iteration: int, purpose: str, count: int) -> list[int]:
        if purpose != "test":
            keys.append((seed, iteration, 0, purpose))
        return integers(seed, iteration, purpose, count)

    patch.setattr(keyed, "bits", record_bits)
    patch.setattr(keyed, "integers", record_integers)
    return keys


def contents(folder: Path) -> dict[str, Any]:
    """Every file below `folder` with what it means: neither the clock nor the order in a file's header counts."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "np") as file:
            about = _timeless(file.metadata() or {})
            if "state" in about:
                about["state"] = _timeless(json.loads(about["state"]))
            return about, {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    if path.stem.startswith("evaluation") or path.stem.endswith("evaluation"):
        return [(key, _timeless(row)) for key, row in json.loads(path.read_text()).items()]
    if path.name == "curve.jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _timeless(about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "seconds": 0, "distill_seconds": 0}


def options(keys: dict[str, Any]) -> list[str]:
    """Keys of a configuration as options of the command line."""
    words = []
    for name, value in keys.items():
        option = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return words


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, negative for the signal that ended it, and all that it wrote."""

    code: int
    out: str
    err: str

    def mistake(self, code: int) -> str:
        """The one line of a process that ended with `code`, without the program's name."""
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        assert (self.code, len(lines)) == (code, 1), self.err
        assert lines[0].startswith("ddfast: "), self.err
        return lines[0].removeprefix("ddfast: ")


@dataclass(frozen=True)
class Child:
    """A running `ddfast ...`."""

    pid: int
    folder: Path

    def wait(self) -> Outcome:
        status = os.waitstatus_to_exitcode(_ask({"wait": self.pid}))
        return Outcome(status, (self.folder / "out").read_text(), (self.folder / "err").read_text())

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not reached():
            assert time.monotonic() < deadline, "never got there"
            time.sleep(0.002)

    def end(self, signum: int) -> Outcome:
        os.kill(self.pid, signum)
        return self.wait()


def ddfast_here(*arguments: str | Path, cwd: Path) -> Outcome:
    """`ddfast ARGUMENTS` in this process: for commands that end before they begin."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _main([str(word) for word in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, cwd: Path | str = "/", setup: str = "") -> Child:
    """`ddfast ARGUMENTS` in a process of its own; `setup` is run there before it, as Python."""
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    request = {"argv": [str(word) for word in arguments], "cwd": str(cwd), "setup": setup, "folder": str(folder)}
    return Child(_ask(request), folder)


def ddfast(*arguments: str | Path, cwd: Path | str = "/", setup: str = "") -> Outcome:
    return start(*arguments, cwd=cwd, setup=setup).wait()


NO_PICTURES = """
import ddfast.distill.run as run
run.save_grid = run.save_curve = lambda *arguments, **keywords: None
"""


def at_call(number: int, target: str, action: str) -> str:
    """A setup that does `action`, a line of Python, before the n-th call of `target`, module:object.function."""
    owner, name = target.rsplit(".", 1)
    return f"""{NO_PICTURES}
import os, pkgutil, resource, signal
owner = pkgutil.resolve_name({owner!r})
original, calls = getattr(owner, {name!r}), [0]
def count(*arguments, **keywords):
    calls[0] += 1
    if calls[0] == {number}:
        {action}
    return original(*arguments, **keywords)
owner.{name} = count
"""


@functools.cache
def _folder() -> str:
    holder = tempfile.TemporaryDirectory()
    atexit.register(holder.cleanup)
    return holder.name


@functools.cache
def _server() -> "subprocess.Popen[str]":
    # Colours and widths that somebody has forced on this process are not what a pipe looks like to that one.
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "COLUMNS": "80"},
    )
    atexit.register(server.stdin.close)
    return server


def _ask(request: dict[str, Any]) -> int:
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def _serve() -> None:
    """Forks for every request, and never computes itself: threads do not survive a fork."""
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo  # noqa: F401 - the first optimizer imports it, which takes a second

    import ddfast.cli  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitpid(request["wait"], 0)[1], flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(_child(**request))
        print(pid, flush=True)


def _child(argv: list[str], cwd: str, setup: str, folder: str) -> int:
    signal.alarm(SECONDS)
    os.chdir(cwd)
    for number, name, flags in ((0, os.devnull, 0), (1, f"{folder}/out", 65), (2, f"{folder}/err", 65)):
        os.dup2(os.open(name, flags, 0o600), number)
    code = _main(argv, setup)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _main(argv: list[str], setup: str = "") -> int:
    """The exit code of a command; what an interpreter would do about its end is done."""
    from ddfast.cli import main

    before, sys.argv = sys.argv, ["ddfast", *argv]
    try:
        exec(setup, {})
        main()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.argv = before
    return 1


if __name__ == "__main__":
    _serve()
