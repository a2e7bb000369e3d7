"""The course of a run as one picture: accuracy on the left, loss terms on the right."""

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ddfast.report.style import (
    BLUE,
    FAINT_INK,
    GREEN,
    GRID_INK,
    INK,
    VERMILION,
    label_axes,
    new_figure,
    put_legend,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TERM_COLOURS = (INK, BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
_BASELINES = {"random": ("random real images", VERMILION), "whole": ("whole training set", GREEN)}
_NOT_TERMS = ("iteration", "seconds")
_LEAST_HEIGHT = 4.0  # percent: closer to it, chance looks like change
_MOST_POINTS = 200  # more are noise to the eye, and get a running median


def save_curve(
    path: Path, *, metrics: list[dict[str, Any]], curve: list[dict[str, Any]], evaluation: dict[str, Any], title: str
) -> None:
    """Writes a PNG of two panels: accuracy over iterations, and every loss term over iterations.

    metrics: {"iteration", name of a term: value, ...} for each logged iteration; "seconds" is not a term. curve:
    {"iteration", "mean", "std"} in percent for each evaluation of the run. evaluation: what `evaluation.json` holds;
    its "random" and "whole" are dashed lines. Each of the three may be empty. The file is replaced in one step. Raises
    `UserError` without Matplotlib.
    """
    figure = new_figure(path, (12, 5), title)
    accuracy, losses = figure.subplots(1, 2, sharex=True)
    _draw_accuracy(accuracy, curve, evaluation)
    _draw_losses(losses, metrics)
    save_figure(figure, path)


def _draw_accuracy(axes: "Axes", curve: list[dict[str, Any]], evaluation: dict[str, Any]) -> None:
    if curve:
        at, mean, std = (np.array([entry[key] for entry in curve]) for key in ("iteration", "mean", "std"))
        axes.errorbar(at, mean, std, color=BLUE, marker="o", markersize=5, capsize=4, label="distilled images")
    for key, (label, colour) in _BASELINES.items():
        if key in evaluation:
            mean = evaluation[key]["mean"]
            axes.axhline(mean, color=colour, linewidth=1.5, linestyle="--", label=f"{label}: {mean:.1f} %")
    middle, height = sum(axes.get_ylim()) / 2, np.ptp(axes.get_ylim())
    if height < _LEAST_HEIGHT:
        axes.set_ylim(middle - _LEAST_HEIGHT / 2, middle + _LEAST_HEIGHT / 2)
    _finish(axes, "accuracy in %", nothing="no evaluation of this run")


def _draw_losses(axes: "Axes", metrics: list[dict[str, Any]]) -> None:
    terms = _terms(metrics)
    for (name, (at, values)), colour in zip(terms.items(), cycle(_TERM_COLOURS), strict=False):
        if len(values) > _MOST_POINTS:
            axes.plot(at, values, color=colour, linewidth=0.6, alpha=0.25)
            at, values = _running_median(at, values)
        axes.plot(at, values, color=colour, linewidth=1.8, label=name.replace("_", " "))
    if terms and all(np.nanmin(values, initial=np.inf) > 0 for _, values in terms.values()):
        axes.set_yscale("log")
    _finish(axes, "loss terms", nothing="no losses were logged")


def _terms(metrics: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Iterations and values of every term, (2, points), in the order in which the terms appear."""
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in metrics:
        for name, value in entry.items():
            if name not in _NOT_TERMS:
                points.setdefault(name, []).append((entry["iteration"], value))
    return {name: np.array(pairs, dtype=np.float64).T for name, pairs in points.items()}


def _running_median(at: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """The median of windows of 2 % of the points, at about 400 of them: as smooth to the eye, and soon done."""
    half = max(2, len(values) // 100)
    step = max(1, len(values) // 400)
    medians = np.median(sliding_window_view(values, 2 * half + 1)[::step], axis=1)
    return at[half : len(at) - half : step], medians


def _finish(axes: "Axes", quantity: str, nothing: str) -> None:
    """Axes, grid and legend of a drawn panel, or one sentence in an empty one."""
    if not axes.has_data():
        axes.set_axis_off()
        axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", va="center", color=FAINT_INK, fontsize=12)
        return
    label_axes(axes, "iteration", quantity)
    axes.grid(axis="y", color=GRID_INK, linewidth=0.8)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.margins(y=0.08)
    put_legend(axes)
