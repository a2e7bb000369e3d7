"""A grid over keys of a run, judged by held-out training images: how weights are chosen for a data set.

Every combination of values is distilled once for each seed, in a run folder of its own. Whatever ends a sweep, it goes
on from the folders that it finds.
"""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

import ddfast
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder
from ddfast.distill.pool import Pool
from ddfast.distill.pretrain import pretrain_with_progress
from ddfast.distill.run import Run
from ddfast.distill.setup import find_device, load_data, pool_config, protocol_of
from ddfast.errors import RunFailed, UserError
from ddfast.evaluate import evaluate_baseline
from ddfast.report import save_sweep
from ddfast.report.sweep import written
from ddfast.signals import Stop

HOLDOUT = 0.25
FILE = "sweep.json"
WRITTEN = ("version", "grid", "seeds", "holdout", "config", "random", "points")  # in it

_OF_THE_POOL = (
    "precision",
    "pool_count",
    "pool_epochs",
    "pool_network",
    "pool_width",
    "pool_depth",
    "pool_weight_decay",
)

Keys = dict[str, Any]
Grid = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    keys: the values that tell its point from the others. config: all keys. name: that of its folder.
    """

    keys: Keys
    config: Config
    name: str


class Sweep:
    """A folder of runs at work.

    Args:
        base: the keys that are neither given nor in the grid.
        given: those that are the same for all points; without a holdout among them it is a quarter.
        grid: the values of each key that differs.
        seeds: runs of each point; their seeds follow on the given one.
        path: the folder. A pool that the user does not give is trained there, once for all points.
        resume: whether `path` holds a sweep already, of these points or others.

    Raises:
        UserError: before anything is written, if a point cannot be carried out, or is there with other keys.
    """

    def __init__(
        self,
        base: Config,
        given: Keys,
        grid: Grid,
        seeds: int,
        path: Path,
        resume: bool,
        console: Console,
    ) -> None:
        self.folder, self.grid, self.console = RunFolder(path), grid, console
        if not resume and (path / FILE).exists():
            raise UserError(f"{path} already holds a sweep; --resume continues it, --out starts another one")
        self.held = load_results(path) if resume else {}
        points = _points(base, given, grid)
        first = points[0][1]
        device = find_device(first.device)
        self.seeds = [first.seed + number for number in range(seeds)]
        self.dataset = load_data(first, device, console)
        self.pools: dict[str, Config] = {}
        self.points: list[tuple[Keys, list[Trial]]] = []
        for keys, config in points:
            config = self._with_pool(keys, config.replace(device=str(device)))
            trials = [Trial(keys, config.replace(seed=seed), f"{_label(keys)},seed={seed}") for seed in self.seeds]
            self._check(trials)
            self.points.append((keys, trials))
        for pool in {config.pool for _, config in points if config.needs_pool and config.pool}:
            Pool.load(Path(pool), self.dataset)
        self.random: dict[str, Any] | None = None
        held = (run for point in self.held.get("points", ()) for run in point["runs"])
        self.done: dict[str, dict[str, Any]] = {run["folder"]: run for run in held}

    def _with_pool(self, keys: Keys, config: Config) -> Config:
        """The configuration with the sweep's pool, where it needs one that is not given."""
        if not config.needs_pool or config.pool:
            return config
        pool = str(self.folder.path / _label({key: keys[key] for key in _OF_THE_POOL if key in keys}, "pool"))
        self.pools[pool] = config
        return config.replace(pool=pool)

    def _check(self, trials: list[Trial]) -> None:
        """Refuses what cannot be carried out, and what is there otherwise."""
        config = trials[0].config.replace(pool="", pool_count=trials[0].config.pool_count or 1)
        Run(config, self.folder.path / "any", False, self.console, dataset=self.dataset)
        for trial in trials:
            path = self.folder.path / trial.name
            if not (path / "config.toml").exists():
                continue
            stored = RunFolder(path).load_config()
            for key in dataclasses.fields(Config):
                there, asked = getattr(stored, key.name), getattr(trial.config, key.name)
                if there != asked:
                    raise UserError(f"{key.name} is {there!r} in {path}, not {asked!r}; another --out begins anew")

    def __call__(self) -> dict[str, Any]:
        """Does what is not done yet, and draws; what sweep.json holds."""
        self.folder.open()
        with Stop() as stop:
            self._save()
            for path, config in self.pools.items():
                settings = pool_config(config)
                pretrain_with_progress(Path(path), self.dataset, config.pool_count, settings, self.console, stop)
            self.random = self._evaluate_random(stop)
            for _, trials in self.points:
                for trial in trials:
                    stop.check()
                    self.done[trial.name] = self._do(trial)
                    self._save()
        results = self.results()
        if any(point["mean"] is not None for point in results["points"]):
            try:
                save_sweep(self.folder.path / "sweep.png", results)
            except UserError as error:
                self.console.print(f"no picture: {error}")
        return results

    def _evaluate_random(self, stop: Stop) -> dict[str, Any] | None:
        """Accuracy of random real images, once; None where it depends on the grid, or a class has too few images."""
        configs = [trials[0].config for _, trials in self.points]
        protocols = {(protocol_of(config), config.ipc) for config in configs}
        protocol, ipc = protocols.pop()
        if protocols or ipc > min(self.dataset.train.counts):
            return None
        of = {**dataclasses.asdict(protocol), "ipc": ipc}
        held = self.held.get("random")
        if held and held["of"] == of:
            return held
        counts = [ipc] * self.dataset.num_classes
        return {"of": of, **evaluate_baseline(counts, self.dataset, protocol, self.console, stop)}

    def _do(self, trial: Trial) -> dict[str, Any]:
        """A run from where it is to its end, unless it is there already; what sweep.json says of it."""
        path = self.folder.path / trial.name
        about = {"seed": trial.config.seed, "folder": trial.name}
        begun, held = (path / "config.toml").exists(), self.done.get(trial.name, {})
        if begun and "accuracies" in held:
            return held
        start = time.monotonic()
        try:
            evaluation = Run(trial.config, path, begun, self.console, dataset=self.dataset, baselines=False)()
        except RunFailed as error:  # such as a weight so large that the loss is not finite
            self.console.print(Text(f"{trial.name} failed: {error}"), soft_wrap=True)
            return {**about, "failed": str(error)}
        seconds = None if begun else round(time.monotonic() - start, 3)
        row = evaluation["distilled"]
        self.console.print(Text(f"{trial.name}: {row['mean']:.1f} ± {row['std']:.1f} %"), soft_wrap=True)
        return {**about, "accuracies": row["runs"], "seconds": seconds}

    def _save(self) -> None:
        self.folder.write_json(FILE, self.results())

    def results(self) -> dict[str, Any]:
        """What sweep.json holds: accuracies in percent; seconds of a run are None if it was ended in between."""
        points = []
        for keys, trials in self.points:
            runs = [self.done[trial.name] for trial in trials if trial.name in self.done]
            points.append({"keys": keys, "runs": runs, **summary(runs, len(trials))})
        config = dataclasses.asdict(self.points[0][1][0].config)
        return {
            "version": ddfast.__version__,
            "grid": {name: list(values) for name, values in self.grid.items()},
            "seeds": self.seeds,
            "holdout": self.dataset.held_out,
            "config": {name: value for name, value in config.items() if name not in (*self.grid, "pool")},
            "random": self.random,
            "points": points,
        }


def summary(runs: Sequence[dict[str, Any]], wanted: int) -> dict[str, float | None]:
    """Mean, deviation (ddof 0) and standard error of a point over all networks of all seeds.

    All three are None unless all wanted runs came to their end, and the error is None for a single network. It is that
    over networks or that over seeds, whichever is larger: networks trained on the same images are not independent, and
    two or three seeds may agree by chance.
    """
    by_seed = [run["accuracies"] for run in runs if "accuracies" in run]
    if len(by_seed) < wanted:
        return {"mean": None, "std": None, "error": None}
    every, means = list(itertools.chain(*by_seed)), [statistics.fmean(runs) for runs in by_seed]
    errors = [statistics.stdev(values) / len(values) ** 0.5 for values in (every, means) if len(values) > 1]
    return {"mean": statistics.fmean(every), "std": statistics.pstdev(every), "error": max(errors, default=None)}


def _points(base: Config, given: Keys, grid: Grid) -> list[tuple[Keys, Config]]:
    """Every combination of the grid's values, with the configuration that it makes."""
    for name in grid.keys() & given.keys():
        raise UserError(f"{name} is given both as an option and in the grid; one of them must go")
    given = {"holdout": base.holdout or HOLDOUT, **given}
    if given["holdout"] == 0:
        raise UserError("holdout must not be 0 in a sweep, which would choose on the test images")
    combinations = (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
    points = [(keys, base.override(**given, **keys)) for keys in combinations]
    if any(config.eval_every == 0 for _, config in points):
        raise UserError("eval_every must not be 0 in a sweep, which compares accuracies")
    return points


def _label(keys: Keys, *before: str) -> str:
    """A folder's name that says the values of keys."""
    return ",".join([*before, *(f"{name}={quote(written(value), safe='')}" for name, value in keys.items())])


def load_results(path: Path) -> dict[str, Any]:
    """What sweep.json in the folder `path` holds.

    Raises:
        UserError: if there is none, or it is something else.
    """
    try:
        results = dict(json.loads((path / FILE).read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} holds no sweep") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path / FILE} is not the result of a sweep: {error}") from error
    for key in WRITTEN:
        if key not in results:
            raise UserError(f"{path / FILE} is not the result of a sweep: it has no {key!r}")
    return results
