"""How many times as fast as each baseline, by operator and workload, with 95 % intervals."""

from pathlib import Path

from benchmarks.baselines import BASELINES
from benchmarks.results import Results
from benchmarks.workloads import WORKLOADS

COLOURS = dict(zip(BASELINES, ("#999999", "#0072b2", "#d55e00"), strict=True))


def plot(results: Results, shown: dict[str, str], path: Path) -> None:
    """One panel for each operator of `shown`, in the direction that it names."""
    import matplotlib  # only here: a machine without it can still measure

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, panels = pyplot.subplots(1, len(shown), figsize=(11, 4.2), sharex=True, sharey=True, layout="constrained")
    workloads = list(reversed(WORKLOADS))
    for panel, (operator, direction) in zip(panels, shown.items(), strict=True):
        for place, workload in enumerate(workloads):
            ours = results.ours((operator, workload, direction))
            for offset, baseline in zip((0.2, 0.0, -0.2), BASELINES, strict=True):
                against = ours and ours["times_as_fast_as"].get(baseline)
                if against:
                    value, low, high = against["value"], against["low"], against["high"]
                    spread = [[max(value - low, 0)], [max(high - value, 0)]]
                    panel.errorbar(value, place + offset, xerr=spread, fmt="o", ms=4, color=COLOURS[baseline])
        panel.axvline(1, color="black", lw=0.8)
        panel.set(xscale="log", title=f"{operator}, {direction}", xlabel="times as fast as the baseline")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(workloads)), [results.scaled(name).replace(", ", "\n") for name in workloads])
    panels[0].set_ylim(-0.6, len(workloads) - 0.4)
    dots = [Line2D([], [], color=colour, marker="o", ls="", ms=4) for colour in COLOURS.values()]
    figure.legend(dots, list(COLOURS), loc="outside lower center", ncols=3, frameon=False)
    commit = results.environment["commit"]
    figure.suptitle(f"ddfast against the baselines: {results.device}, commit {commit}", fontsize=11)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
