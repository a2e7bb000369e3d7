"""What a sweep found, as a table and as a picture: the best point, and all that are as good as far as can be told."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ddfast.report.style import BLUE, GREEN, GRID_INK, INK, VERMILION, label_axes, new_figure, put_legend, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 40  # in a picture of points below each other

_ACCURACY = "accuracy on held-out images in %"
_BARS: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 4, "label": "distilled images"}
_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
    "markeredgecolor": GREEN,
    "markeredgewidth": 2,
    "linestyle": "none",
    "label": "best, and one standard error below it",
}
_DASHED: dict[str, Any] = {"color": VERMILION, "linewidth": 1.5, "linestyle": "--", "label": "random real images"}

Point = dict[str, Any]


def ranked(points: list[Point]) -> list[Point]:
    """The points that have a mean, the best first; the others after them. Equals keep their order."""
    return sorted(points, key=lambda point: -np.inf if point["mean"] is None else point["mean"], reverse=True)


def as_good(point: Point, best: Point) -> bool:
    """Whether a point comes within one standard error of the best."""
    return None not in (point["mean"], best["error"]) and point["mean"] >= best["mean"] - best["error"]


def written(value: Any) -> str:
    """A value as one gives it in a grid."""
    return value if isinstance(value, str) else str(value).lower().removesuffix(".0")


def options_line(keys: dict[str, Any]) -> str:
    """Keys as options of `ddfast distill`; one without a value needs none."""
    words = []
    for name, value in keys.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words.append(f"--{option} {written(value)}")
    return " ".join(words)


def sweep_table(results: dict[str, Any]) -> Table:
    """A row for each point, the best first, and one for random images.

    results: what `sweep.json` holds. Accuracies are means ± deviations over networks, in percent.
    """
    table = Table(*results["grid"], box=None, header_style="bold", pad_edge=False)
    for column in ("held-out accuracy", "networks"):
        table.add_column(column, justify="right")
    table.add_column("")
    points = ranked(results["points"])
    for point in points:
        accuracy = "–" if point["mean"] is None else f"{point['mean']:.1f} ± {point['std']:.1f} %"
        networks = sum(len(run.get("accuracies", ())) for run in point["runs"])
        table.add_row(*map(written, point["keys"].values()), accuracy, str(networks), _remark(point, points[0]))
    random = results["random"]
    if random:
        accuracy = f"{random['mean']:.1f} ± {random['std']:.1f} %"
        blank = [""] * (len(results["grid"]) - 1)
        table.add_row("random real images", *blank, accuracy, str(len(random["runs"])), "", style="dim")
    return table


def _remark(point: Point, best: Point) -> str:
    failed = sum("failed" in run for run in point["runs"])
    if failed:
        return f"{failed} of {len(point['runs'])} runs failed"
    if point["mean"] is None:
        return "unfinished"
    if point is best:
        return "best"
    return "within error" if as_good(point, best) else ""


def save_sweep(path: Path, results: dict[str, Any]) -> None:
    """Writes a PNG: a line for one key, a heat map for two, points below each other for more.

    results: what `sweep.json` holds, with a mean for at least one point. Error bars and the shaded band are one
    standard error. The file is replaced in one step. Raises `UserError` without Matplotlib.
    """
    sizes = [len(values) for values in results["grid"].values()]
    shown = ranked([point for point in results["points"] if point["mean"] is not None])[:MOST_POINTS]
    size = (8.0, 5.0) if len(sizes) == 1 else (3.5 + 1.1 * sizes[1], 2.0 + 0.6 * sizes[0])
    if len(sizes) > 2:
        size = (10.0, 2.0 + 0.3 * len(shown))
    figure = new_figure(path, size, f"sweep of {', '.join(results['grid'])}" if len(sizes) < 3 else "sweep")
    axes = figure.subplots()
    draw = {1: _draw_line, 2: _draw_map}.get(len(sizes), _draw_points)
    draw(axes, results, shown)
    save_figure(figure, path)


def _draw_line(axes: "Axes", results: dict[str, Any], shown: list[Point]) -> None:
    """Values at equal distances, in the order in which they were given: powers of ten beside 0 have no better axis."""
    (name, values), *_ = results["grid"].items()
    at = {written(value): place for place, value in enumerate(values)}
    points = sorted((at[written(point["keys"][name])], point) for point in shown)
    places = [place for place, _ in points]
    style = "none" if any(isinstance(value, str) for value in values) else "-"
    axes.errorbar(places, *_means([point for _, point in points]), linestyle=style, **_BARS)
    best = shown[0]
    axes.plot(at[written(best["keys"][name])], best["mean"], **_RING)
    axes.axhspan(best["mean"] - (best["error"] or 0), best["mean"], color=GREEN, alpha=0.12, linewidth=0)
    if results["random"]:
        axes.axhline(results["random"]["mean"], **_DASHED)
    axes.set_xticks(range(len(values)), list(at))
    axes.grid(axis="y", color=GRID_INK, linewidth=0.8)
    label_axes(axes, name, _ACCURACY)
    put_legend(axes)


def _draw_map(axes: "Axes", results: dict[str, Any], shown: list[Point]) -> None:
    """The first key downwards, the second to the right; a point without a mean is left white."""
    (down, rows), (right, columns) = results["grid"].items()
    means = np.full((len(rows), len(columns)), np.nan)
    for point in shown:
        means[_place(rows, point, down), _place(columns, point, right)] = point["mean"]
    image = axes.imshow(means, cmap="cividis", aspect="auto")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for point in shown:
        cell = _place(columns, point, right), _place(rows, point, down)
        mark = _remark(point, shown[0])
        colour = "white" if point["mean"] <= middle else INK
        axes.annotate(f"{point['mean']:.1f}\n{mark}".strip(), cell, ha="center", va="center", color=colour, fontsize=10)
    label_axes(axes, right, down)
    axes.set_xticks(range(len(columns)), list(map(written, columns)))
    axes.set_yticks(range(len(rows)), list(map(written, rows)))
    axes.figure.colorbar(image, ax=axes).set_label(_ACCURACY, color=INK, fontsize=11)


def _draw_points(axes: "Axes", results: dict[str, Any], shown: list[Point]) -> None:
    """The best on top."""
    means, errors = _means(shown)
    axes.errorbar(means, range(len(shown)), xerr=errors, linestyle="none", **_BARS)
    best = shown[0]
    axes.plot(best["mean"], 0, **_RING)
    axes.axvspan(best["mean"] - (best["error"] or 0), best["mean"], color=GREEN, alpha=0.12, linewidth=0)
    if results["random"]:
        axes.axvline(results["random"]["mean"], **_DASHED)
    names = [", ".join(f"{name}={written(value)}" for name, value in point["keys"].items()) for point in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", color=GRID_INK, linewidth=0.8)
    left_out = len(results["points"]) - len(shown)
    label_axes(axes, _ACCURACY + (f"; {left_out} points are not shown" if left_out else ""), "")
    put_legend(axes)


def _means(points: list[Point]) -> tuple[list[float], list[float]]:
    return [point["mean"] for point in points], [point["error"] or 0.0 for point in points]


def _place(values: list[Any], point: Point, name: str) -> int:
    return values.index(point["keys"][name])
