"""What an evaluation found, as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

_LABELS = {"random": "random real images", "distilled": "distilled images", "whole": "whole training set"}


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """A row for each training set in `evaluation`: its images, the accuracy they give, and over how many networks.

    evaluation: what `evaluation.json` holds. A "best" entry becomes a last row that says how it was chosen.
    """
    table = Table("trained on", box=None, header_style="bold", pad_edge=False)
    for column in ("images", "accuracy", "networks"):
        table.add_column(column, justify="right")
    for key, label in _LABELS.items():
        if key in evaluation:
            entry = evaluation[key]
            images = f"{entry['images']:,}" if "images" in entry else "–"
            table.add_row(label, images, _accuracy(entry), str(len(entry["runs"])))
    if "best" in evaluation:
        best = evaluation["best"]
        label = f"best (iteration {best['iteration']:,}, picked on test images)"
        table.add_row(label, "–", _accuracy(best), "–", style="dim")
    return table


def networks_table(evaluations: dict[str, dict[str, Any]]) -> Table:
    """A row for each network, by its name; a column for each training set that any of them was trained on."""
    labels = {key: label for key, label in _LABELS.items() if any(key in found for found in evaluations.values())}
    table = Table("network", box=None, header_style="bold", pad_edge=False)
    for label in labels.values():
        table.add_column(label, justify="right")
    for name, evaluation in evaluations.items():
        table.add_row(name, *(_accuracy(evaluation[key]) if key in evaluation else "–" for key in labels))
    return table


def class_table(evaluation: dict[str, Any], classes: Sequence[str]) -> Table:
    """Accuracy per class in percent: a row for each class, a column for each entry that has "per_class"."""
    entries = {label: evaluation[key] for key, label in _LABELS.items() if "per_class" in evaluation.get(key, {})}
    table = Table("class", box=None, header_style="bold", pad_edge=False)
    for label in entries:
        table.add_column(label, justify="right")
    for name, *accuracies in zip(classes, *(entry["per_class"] for entry in entries.values()), strict=True):
        table.add_row(name, *("–" if accuracy is None else f"{accuracy:.1f}" for accuracy in accuracies))
    return table


def pool_table(networks: Sequence[dict[str, Any]]) -> Table:
    """A row for each network of a pool, as `pretrain.trained` finds them: accuracy, and seconds of training."""
    table = Table("network", box=None, header_style="bold", pad_edge=False)
    for column in ("accuracy", "seconds"):
        table.add_column(column, justify="right")
    for entry in networks:
        seconds = "–" if entry["seconds"] is None else f"{entry['seconds']:,.1f}"
        table.add_row(entry["network"], f"{entry['accuracy']:.1f} %", seconds)
    return table


def _accuracy(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.1f} ± {entry['std']:.1f} %"
