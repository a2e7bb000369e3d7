r"""Memory of an iteration against the number of classes, and whatever else is varied: the published loop and ddfast.

    python -m benchmarks.profile_memory                                            small, a minute
    python -m benchmarks.profile_memory --width 128 --pool-width 64 --real 256 --size 64 --budget 512MiB \
        --classes 10 50 100 200
    python -m benchmarks.profile_memory --show FILE    what was measured

Bytes are those of tensors, beyond the data and the synthetic images: what PyTorch's allocator hands out in one
iteration, after one that does not count. Beside them the resident set of the process, which began with nothing but
imports, or what the allocator reserved on CUDA. Writes memory.json and memory.png into --out, and on CUDA a snapshot
for pytorch.org/memory_viz of every measurement. The profiler's own records of an iteration of minutes take gigabytes:
--resident leaves it out, and with it all but the resident set.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.iterations import CONTENDERS, Setting, add_settings, contender, settings
from benchmarks.phases import PHASES, profiled

SMALL = {"classes": [5, 10, 20], "ipc": 2, "real": 16, "width": 16, "pool_width": 8, "budget": "4MiB"}
COLOURS = {"published": "#D55E00", "float32": "#0072B2", "bf16": "#009E73", "tf32": "#CC79A7"}


@dataclass(frozen=True)
class Row:
    """peak, average: of tensors beyond data and images, None if not profiled. resident: the most, and with data."""

    contender: str
    setting: dict[str, Any]
    peak_bytes: int | None
    average_bytes: float | None
    peak_bytes_by_phase: dict[str, int]
    resident_bytes: int

    @property
    def beside_bytes(self) -> int:
        """The resident set beyond data, images and their momentum."""
        setting = Setting(**self.setting)
        pixels = 3 * setting.size**2 * setting.classes
        return self.resident_bytes - pixels * (2 * setting.real + 1) - 2 * 4 * pixels * setting.ipc


def measure(name: str, setting: Setting, device: torch.device, profile: bool, snapshot: str | None = None) -> Row:
    before = _status("VmRSS")
    with contender(name, setting, device, graph=False) as iterate:
        if device.type == "cuda":
            resident = _reserved(iterate, snapshot)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
            iterate()
            resident = _status("VmHWM") - before
        if not profile:
            return Row(name, asdict(setting), None, None, {}, resident)
        memory = profiled(iterate, device).memory
    return Row(name, asdict(setting), memory.peak, memory.average, memory.peak_by_phase, resident)


def _status(key: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _reserved(iterate: Any, snapshot: str | None) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(max_entries=1_000_000)
    iterate()
    if snapshot is not None:
        torch.cuda.memory._dump_snapshot(snapshot)
    torch.cuda.memory._record_memory_history(enabled=None)
    return torch.cuda.max_memory_reserved()


def show(rows: Sequence[Row]) -> None:
    """Prints the whole iteration; and its peak in every phase."""
    console = Console(width=160)
    console.print(_table("MiB", rows, ("peak", "average", "resident", "beside data"), _whole), "")
    profiled_rows = [row for row in rows if row.peak_bytes_by_phase]
    if profiled_rows:
        console.print(_table("peak in, MiB", profiled_rows, PHASES[:-1], _phases), "")


def _whole(row: Row) -> Iterable[float | None]:
    return row.peak_bytes, row.average_bytes, row.resident_bytes, row.beside_bytes


def _phases(row: Row) -> Iterable[float]:
    return (row.peak_bytes_by_phase[phase] for phase in PHASES[:-1])


def _table(
    title: str, rows: Sequence[Row], columns: Sequence[str], sizes: Callable[[Row], Iterable[float | None]]
) -> Table:
    varied = _varied(rows)
    shown = Table(title, *varied, box=None, header_style="bold", pad_edge=False)
    for name in columns:
        shown.add_column(name, justify="right")
    for row in rows:
        cells = ("–" if size is None else f"{size / 2**20:.1f}" for size in sizes(row))
        shown.add_row(row.contender, *(str(row.setting[name]) for name in varied), *cells)
    return shown


def _varied(rows: Sequence[Row]) -> list[str]:
    """The classes, and what else is not the same in all rows."""
    return [name for name in rows[0].setting if name == "classes" or len({row.setting[name] for row in rows}) > 1]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Peaks over the classes, a line for each contender and each of the other settings."""
    import matplotlib  # only here: a machine without it can still measure

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    others = [name for name in _varied(rows) if name != "classes"]
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.contender, *(row.setting[name] for name in others)), []).append(row)
    markers = {key[1:]: marker for key, marker in zip(dict.fromkeys(key[1:] for key in lines), "os^Dv" * 9)}  # noqa: B905
    for key, points in lines.items():
        points = sorted(points, key=lambda row: row.setting["classes"])
        label = ", ".join([key[0], *(f"{name} {value}" for name, value in zip(others, key[1:], strict=True))])
        places = [row.setting["classes"] for row in points]
        peaks = [(row.beside_bytes if row.peak_bytes is None else row.peak_bytes) / 2**20 for row in points]
        axes.plot(places, peaks, marker=markers[key[1:]], color=COLOURS[key[0]], label=label)
    axes.set(xlabel="classes", ylabel="MiB beyond data and images", ylim=(0, None), title="Peak memory of an iteration")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=list(COLOURS), default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, help="default: the machine's folder of results")
    parser.add_argument("--resident", action="store_true", help="the resident set alone")
    parser.add_argument("--show", type=Path)
    add_settings(parser, **SMALL)
    options = parser.parse_args(arguments)
    if options.show:
        rows = [Row(**row) for row in json.loads(options.show.read_text())["rows"]]
        show(rows)
        return rows
    out = options.out or environment.results_folder()
    here = environment.write(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    # A process for each measurement: what another has left behind in the heap would count as resident.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for setting in settings(options):
            for name in options.contenders:
                snapshot = str(out / f"memory-{len(rows)}-{name}.pickle") if device.type == "cuda" else None
                rows.append(processes.submit(measure, name, setting, device, not options.resident, snapshot).result())
                record = {"environment": here, "rows": [asdict(row) for row in rows]}
                (out / "memory.json").write_text(json.dumps(record, indent=1) + "\n")
    show(rows)
    plot(rows, out / "memory.png")
    print(out / "memory.json")
    return rows


if __name__ == "__main__":
    main()
