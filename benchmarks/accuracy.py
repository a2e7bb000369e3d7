"""Accuracies on real images: a run for each method, all alike but for their losses, and what random images give.

    python -m benchmarks.accuracy FOLDER --recipe cifar10-ipc10 --methods random,dm,cm,cc,cmi,all 'pool="pool"'
    python -m benchmarks.accuracy FOLDER --recipe cifar10-ipc10 --methods cm --label sweep covariance_weight=0.1
    python -m benchmarks.accuracy FOLDER        the table of what is there, and accuracy.png

A method has the keys of its recipe, and over them KEY=VALUE, written as in a config.toml. FOLDER holds a run folder for
each, which goes on where it was stopped, perhaps to more iterations, with the environment it ran in and, in pool.json,
what pool it had. Several commands may fill one FOLDER at a time, and what is there they do not do again.
"""

import argparse
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import environment
from ddfast.distill.config import Config
from ddfast.distill.folder import RunFolder
from ddfast.distill.pretrain import trained
from ddfast.distill.run import Run
from ddfast.distill.setup import find_device, load_data, protocol_of
from ddfast.errors import UserError
from ddfast.evaluate import evaluate_baseline
from ddfast.memory import keep_freed_memory
from ddfast.recipes import from_recipe
from ddfast.report.style import GRID_INK, label_axes, new_figure, put_legend, save_figure
from ddfast.signals import Stop

METHODS: dict[str, tuple[str, str, dict[str, float]]] = {  # what it is called, its recipe, and what that is without
    "random": ("random real images", "dm", {}),
    "dm": ("DM", "dm", {}),
    "cm": ("DM + CM", "iid-dm", {"centralization_weight": 0.0}),
    "cc": ("DM + CC", "iid-dm", {"covariance_weight": 0.0}),
    "cmi": ("DM + CMI", "cmi-dm", {}),
    "iid-dm": ("DM + CM + CC", "iid-dm", {}),
    "all": ("DM + CM + CC + CMI", "all-dm", {}),
    "idm": ("IDM", "idm", {}),
    "iid-idm": ("IDM + CM + CC", "iid-idm", {}),
}
WEIGHTS = {"covariance_weight": "CM", "centralization_weight": "CC", "cmi_weight": "CMI"}
COLUMNS = ("losses", "weights", "iterations", "distilled in", "accuracy", "networks", "against DM")
INKS = ("#606060", "#202020", "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#882255")
COLOURS = dict(zip(METHODS, INKS, strict=True))


@dataclass(frozen=True)
class Result:
    """A method's folder, read."""

    folder: Path

    @cached_property
    def method(self) -> str:
        return self.folder.name.partition("@")[0]

    @cached_property
    def config(self) -> Config:
        return RunFolder(self.folder).load_config()

    @cached_property
    def row(self) -> dict[str, Any]:
        """Of evaluation.json."""
        evaluation = RunFolder(self.folder).evaluation()
        return dict(evaluation["random" if self.method == "random" else "distilled"])

    @cached_property
    def environment(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "environment.json").read_text()))

    def course(self) -> list[dict[str, Any]]:
        """Its evaluations, in order: the last of them may stand in evaluation.json alone."""
        before = RunFolder(self.folder).lines("curve.jsonl")
        return [*(point for point in before if point["iteration"] < self.row["iteration"]), self.row]

    @property
    def label(self) -> str:
        return self.folder.name.partition("@")[2]

    @property
    def title(self) -> str:
        return f"{METHODS[self.method][0]}{self.label and f' ({self.label})'}"


def distil(folder: Path, config: Config, console: Console) -> None:
    """A run from where it is to its end."""
    config, begun = config.replace(device=str(find_device(config.device))), (folder / "config.toml").exists()
    if begun and RunFolder(folder).load_config().replace(iterations=config.iterations) != config:
        raise UserError(f"{folder} is a run of other keys; --label tells them apart")
    run = Run(config, folder, begun, console, baselines=False)
    environment.write(folder)
    if config.needs_pool and config.pool:
        pool = Path(config.pool)
        about = {"networks": trained(pool), **json.loads((pool / "pool.json").read_text())}
        RunFolder(folder).write_json("pool.json", about)
    row = run()["distilled"]
    console.print(f"{folder.name}: {row['mean']:.2f} ± {row['std']:.2f} %")


def sample(folder: Path, config: Config, console: Console) -> None:
    """Accuracy of random real images, as many as the others have."""
    at = RunFolder(folder)
    if at.evaluation():
        return
    dataset = load_data(config, find_device(config.device), console)
    environment.write(folder)
    at.save_config(config)
    counts = [config.ipc] * dataset.num_classes
    with Stop() as stop:
        at.write_json(
            "evaluation.json", {"random": evaluate_baseline(counts, dataset, protocol_of(config), console, stop)}
        )


def results(folder: Path) -> list[Result]:
    """What is finished, in the order of METHODS."""
    found = [Result(path.parent) for path in folder.glob("*/evaluation.json")]
    return sorted(found, key=lambda it: (list(METHODS).index(it.method), it.folder.name))


def cells(found: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """A row for each result, in the order of COLUMNS; differences are to DM of the same label, or of none."""
    bases = {it.label: it for it in found if it.method == "dm"}
    for it in found:
        base = bases.get(it.label, bases.get(""))
        weights = (f"{name} {getattr(it.config, key):g}" for key, name in WEIGHTS.items() if getattr(it.config, key))
        drawn = it.method == "random"
        yield (
            it.title,
            "–" if drawn else ", ".join(weights) or "–",
            "–" if drawn else f"{it.row['iteration']:,}",
            "–" if drawn else f"{it.row['distill_seconds'] / 60:.1f} min",
            f"{it.row['mean']:.1f} ± {it.row['std']:.1f} %",
            str(len(it.row["runs"])),
            "–" if base is None or drawn or it is base else _difference(it.row["runs"], base.row["runs"]),
        )


def _difference(runs: Sequence[float], base: Sequence[float]) -> str:
    """Of the means, with its standard error: networks are the only thing that varies."""
    means, errors = [], []
    for values in (runs, base):
        mean = sum(values) / len(values)
        means.append(mean)
        errors.append(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return f"{round(means[0] - means[1], 1) + 0.0:+.1f} ± {sum(errors) ** 0.5:.1f}"


def table(folder: Path) -> Iterator[str]:
    """The results below `folder` in Markdown."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---|---|" + "--:|" * (len(COLUMNS) - 2)
    for row in cells(results(folder)):
        yield f"| {' | '.join(row)} |"


def conditions(folder: Path) -> str:
    """What all runs have in common, and their pool."""
    config = results(folder)[-1].config  # random images come first, and take no real ones
    said = [
        f"{config.data} at IPC {config.ipc}: {config.network} of width {config.width}, {config.precision}",
        f"{config.batch_real} real images of a class and iteration",
        f"evaluated by {config.repeats} networks of {config.epochs} epochs",
    ]
    for file in sorted(folder.glob("*/pool.json"))[:1]:
        pool = json.loads(file.read_text())
        reached = [network["accuracy"] for network in pool["networks"]]
        tested = f"{'held-out' if pool['holdout'] else 'test'} images"
        said.append(
            f"a pool of {len(reached)} {pool['network']} of width {pool['width']} and {pool['epochs']} epochs, "
            f"{min(reached):.1f} to {max(reached):.1f} % of {tested}"
        )
    return "; ".join(said)


def draw(folder: Path) -> None:
    """Accuracy over iterations, and over minutes of distillation, of every run: at its end, and where it was before."""
    found = results(folder)
    courses = [(it, it.course()) for it in found if it.method != "random"]
    figure = new_figure(
        folder / "accuracy.png", (12, 5), f"{found[-1].config.data}, {found[-1].config.ipc} images a class"
    )
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (key, unit, name) in zip(
        panels, (("iteration", 1, "iteration"), ("distill_seconds", 60, "minutes of distillation")), strict=True
    ):
        for it, course in courses:
            at, mean = [point[key] / unit for point in course], [point["mean"] for point in course]
            style = {"color": COLOURS[it.method], "linestyle": "--" if it.label else "-"}
            panel.plot(at, mean, **style, marker="o", markersize=4, linewidth=1.8, label=it.title)
        for it in found:
            if it.method == "random":
                panel.axhline(it.row["mean"], color=COLOURS[it.method], linewidth=1.2, linestyle=":", label=it.title)
        label_axes(panel, name, "accuracy in %")
        panel.grid(axis="y", color=GRID_INK, linewidth=0.8)
    put_legend(panels[0])
    save_figure(figure, folder / "accuracy.png")


def run(folder: Path, recipe: str, methods: str, label: str, words: Sequence[str]) -> None:
    """What the command does with its arguments.

    Raises:
        UserError: if there is no such method, recipe or key, or a run of other keys is in the way.
    """
    keys, console = _keys(words), Console(highlight=False, markup=False, emoji=False)
    for method in filter(None, methods.split(",")):
        if method not in METHODS:
            raise UserError(f"--methods must be some of {','.join(METHODS)}, got {method!r}")
        _, origin, without = METHODS[method]
        config = from_recipe(f"{origin}/{recipe}").replace(**without).override(**keys)
        at = folder / "@".join(filter(None, (method, label)))
        if method == "random":
            sample(at, config, console)
        else:
            distil(at, config, console)


def _keys(words: Sequence[str]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for word in words:
        try:
            keys |= tomllib.loads(word)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{word!r} must be KEY=VALUE, the value as in TOML: {error}") from error
    return keys


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", help="DATA-ipcN of recipes METHOD/DATA-ipcN")
    parser.add_argument("--methods", default="", help=f"some of {','.join(METHODS)}")
    parser.add_argument("--label", default="", help="tells runs of other keys from those of the recipe")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    keep_freed_memory()
    try:
        run(options.folder, options.recipe, options.methods, options.label, options.keys)
    except UserError as error:
        parser.error(str(error))
    print("\n".join(table(options.folder)))
    draw(options.folder)


if __name__ == "__main__":
    main()
