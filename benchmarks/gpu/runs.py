"""Runs on real images as a user makes them: a rehearsal, a pool, and distillations with their evaluation.

Every run folder is copied to where the archive finds it, after whatever ended the run. Where a step has less time than
the published numbers take, a run has fewer iterations, a pool fewer epochs, and the records say how many.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import accuracy
from benchmarks.environment import ROOT
from benchmarks.gpu.arrival import data_of
from benchmarks.gpu.case import Case, Given, NotHere, Record, Wrong
from benchmarks.gpu.timing import TOY
from benchmarks.iterations import LOSSES, Setting, contender
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder
from ddfast.distill.pretrain import PoolConfig, pretrain, trained
from ddfast.distill.run import Run
from ddfast.distill.setup import find_device, load_data
from ddfast.ranks import ALONE, Ranks

RECIPE = "cifar10-ipc10"
NETWORKS, EPOCHS, ITERATIONS, REHEARSED = 3, 20, 20_000, 500
KEPT = (".toml", ".json", ".jsonl", ".png")  # of a run folder, and its images
DISTILLING = 0.7  # the part of a step's time that iterations may take: what is left is for the evaluation
TOY_KEYS: dict[str, Any] = {"width": 8, "depth": 2, "batch_real": 8, "epochs": 2, "repeats": 1, "ipc": 2}


def keys(given: Given, **more: Any) -> dict[str, Any]:
    """What every run is given, over its recipe."""
    named = {"device": str(given.device), "precision": "bf16", "log_every": 100, "checkpoint_every": 1000}
    named |= {"data": data_of(given), "pool": os.path.relpath(pool_folder(given), ROOT)}
    return named | more | given.pick({}, TOY_KEYS)


def pool_folder(given: Given) -> Path:
    return given.work / "pool"


def rehearsal_cases(given: Given) -> Iterator[Case]:
    yield Case("a run of 500 iterations", partial(rehearse, given), limit=120)
    yield Case("its report", partial(report, given, given.work / "rehearsal" / "cm"), limit=60)
    yield Case("the run from the middle", partial(resumed, given), limit=60)


def rehearse(given: Given) -> Record:
    """DM + CM with all that leaves a run folder: metrics, checkpoints, evaluation and pictures."""
    folder = given.work / "rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    words = keys(given, iterations=given.pick(REHEARSED, 4), epochs=100, repeats=1, log_every=1)
    try:
        accuracy.run(folder, RECIPE, "cm", "", as_words(words))
    finally:
        keep(given, folder / "cm", "rehearsal")
    return about(folder / "cm")


def report(given: Given, folder: Path) -> Record:
    command = [sys.executable, "-m", "ddfast", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise Wrong(f"ddfast report ended with {done.returncode}: {done.stderr[-300:]}")
    return {"printed": done.stdout[-2000:]}


def resumed(given: Given) -> Record:
    """A run in two halves, the second from the first one's checkpoint, against the same run in one piece."""
    images = []
    for cut in (False, True):
        folder = given.work / f"resumed-{cut}"
        shutil.rmtree(folder, ignore_errors=True)
        words = keys(given, iterations=given.pick(40, 4), eval_every=0, checkpoint_every=10)
        config = Config(covariance_weight=0.01, ipc=words.pop("ipc", 10), **words)
        if cut:
            Run(config.replace(iterations=config.iterations // 2), folder, False, Console(quiet=True))()
        Run(config, folder, cut, Console(quiet=True))()
        state = RunFolder(folder).load_state(given.device)
        assert state is not None
        images.append(state.images)
    if not bool((images[0] == images[1]).all()):
        raise Wrong(f"the images differ by up to {(images[0] - images[1]).abs().max().item():.1e}")
    return {}


# A pool, its networks side by side.


def pool_cases(given: Given) -> Iterator[Case]:
    yield Case("a pool side by side", partial(train_pool, given))


def train_pool(given: Given) -> Record:
    """A process for each network, on one device: what they need of each other is the folder alone."""
    folder = pool_folder(given)
    shutil.rmtree(folder, ignore_errors=True)
    epochs = given.pick(EPOCHS, 1)
    if not given.toy:
        begun = time.monotonic()
        command = train_command(given, given.work / "pool-trial", 0, 1)
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=given.left)
        alone = min(row["seconds"] for row in trained(given.work / "pool-trial"))
        epochs = max(1, min(EPOCHS, int(0.9 * given.left / (NETWORKS * alone))))
        print(f"an epoch of one network: {alone:.1f} s, in all {time.monotonic() - begun:.1f} s; so {epochs} epochs")
    claim(given, folder, epochs)
    begun = time.monotonic()
    processes = [
        subprocess.Popen(train_command(given, folder, number, epochs), cwd=ROOT) for number in range(given.pick(3, 2))
    ]
    codes = [process.wait() for process in processes]
    networks = trained(folder)
    found = {"epochs": epochs, "seconds_side_by_side": time.monotonic() - begun, "networks": networks}
    if any(codes):
        raise Wrong(f"the processes ended with {codes}", **found)
    return found


def train_command(given: Given, folder: Path, number: int, epochs: int) -> list[str]:
    asked = {"folder": str(folder), "number": number, "epochs": epochs, "toy": given.toy}
    asked |= {"data": data_of(given), "device": str(given.device)}
    return [sys.executable, "-m", "benchmarks.gpu.runs", json.dumps(asked)]


class Turn(Ranks):
    """The process that trains one network of a pool, and none of the others."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def turns(self, count: int) -> range:
        return range(self.number, self.number + 1)


def claim(given: Given, folder: Path, epochs: int) -> None:
    """Makes the folder of a pool without a network: the processes must not all do it at once."""
    train_one(json.loads(train_command(given, folder, -1, epochs)[-1]))


def train_one(asked: dict[str, Any]) -> None:
    """What a process of `train_command` does: one network of a pool as the recipes of IID have it."""
    config = Config(data=asked["data"], **_statistics())
    dataset = load_data(config, find_device(asked["device"]))
    settings = PoolConfig(epochs=asked["epochs"], precision="bf16", **({"width": 4} if asked["toy"] else {}))
    count, turn = asked["number"] + 1, Turn(asked["number"]) if asked["number"] >= 0 else ALONE
    pretrain(Path(asked["folder"]), dataset, count, settings, lambda: None, print, turn)


def _statistics() -> dict[str, Any]:
    return {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


# Distillations.


def distil_cases(method: str, given: Given) -> Iterator[Case]:
    yield Case(f"{method} {RECIPE}", partial(distil, given, method))


def dm_cases(given: Given) -> Iterator[Case]:
    return distil_cases("dm", given)


def iid_dm_cases(given: Given) -> Iterator[Case]:
    return distil_cases("iid-dm", given)


def cmi_cases(given: Given) -> Iterator[Case]:
    return distil_cases("cmi", given)


def all_cases(given: Given) -> Iterator[Case]:
    return distil_cases("all", given)


def random_cases(given: Given) -> Iterator[Case]:
    return distil_cases("random", given)


def distil(given: Given, method: str) -> Record:
    if method in ("iid-dm", "cmi", "all") and not list(pool_folder(given).glob("network-*.safetensors")):
        raise NotHere("there is no pool")
    folder = given.work / f"accuracy-{RECIPE}"
    shutil.rmtree(folder / method, ignore_errors=True)
    iterations, rate = ITERATIONS, None
    if method != "random":
        rate = seconds_of_iteration(given, {"cmi": "cmi-dm"}.get(method, method))
        iterations = max(given.pick(100, 2), min(given.pick(ITERATIONS, 4), int(DISTILLING * given.left / rate)))
    try:
        accuracy.run(folder, RECIPE, method, "", as_words(keys(given, iterations=iterations)))
    finally:
        keep(given, folder / method, f"accuracy-{RECIPE}/{method}")
    return about(folder / method) | {"iterations": iterations, "iteration_seconds_before": rate}


def seconds_of_iteration(given: Given, losses: str) -> float:
    """On random images, by some iterations after the first ones: how many of them the time is enough for."""
    assert losses in LOSSES
    with contender("bf16", Setting(**given.pick({}, TOY), losses=losses), given.device) as iterate:
        for _ in range(3):
            iterate()
        begun, count = time.monotonic(), given.pick(50, 2)
        for _ in range(count):
            iterate()  # each one reports its loss, which waits for the device
        return (time.monotonic() - begun) / count


def as_words(named: dict[str, Any]) -> Sequence[str]:
    """Keys as KEY=VALUE of benchmarks/accuracy.py."""
    return [f"{name}={json.dumps(value)}" for name, value in named.items()]


def keep(given: Given, folder: Path, name: str) -> None:
    """Copies what the archive has room for: all but the checkpoint, whose images are in the synthetic set as well."""
    target = given.kept / "runs" / name
    target.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*"):
        if path.suffix in KEPT or path.name == "synthetic.safetensors":
            shutil.copy(path, target / path.name)


def about(folder: Path) -> Record:
    found = RunFolder(folder).evaluation() or {}
    row = dict(found.get("distilled") or found.get("random") or {})
    if not row:
        raise Wrong(f"{folder.name} has no evaluation")
    return {"run": {name: row.get(name) for name in ("mean", "std", "runs", "iteration", "distill_seconds")}}


if __name__ == "__main__":
    train_one(json.loads(sys.argv[1]))
