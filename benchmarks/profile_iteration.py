"""Where the time of an iteration goes, by phase and by kernel: the published loop and ddfast.

    python -m benchmarks.profile_iteration
    python -m benchmarks.profile_iteration --width 128 --pool-width 64 --real 256 --contenders published float32 bf16

Prints both as tables. Writes profile.json into --out and, for chrome://tracing or ui.perfetto.dev, the trace of every
contender. The profiler itself takes time, most from a loop of many small steps: bench_iteration.py has the true ratios.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.iterations import CONTENDERS, add_settings, contender, settings
from benchmarks.phases import PHASES, Profile, profiled

SMALL = {"classes": 5, "ipc": 2, "real": 16, "width": 16, "pool_width": 8}


def phase_table(profiles: dict[str, Profile]) -> Table:
    shown = Table("phase", box=None, header_style="bold", pad_edge=False)
    for name in profiles:
        shown.add_column(f"{name}, ms", justify="right")
        shown.add_column("%", justify="right")
    for phase in (*PHASES, "all"):
        cells = []
        for profile in profiles.values():
            spent = profile.seconds if phase == "all" else profile.seconds_by_phase[phase]
            cells += [f"{1e3 * spent:.1f}", f"{100 * spent / profile.seconds:.0f}"]
        shown.add_row(phase, *cells)
    return shown


def kernel_table(name: str, profile: Profile, most: int) -> Table:
    """The kernels that take longest; on a CPU the operators, without those that they call."""
    shown = Table(f"{name}: kernel", box=None, header_style="bold", pad_edge=False)
    for column in ("ms", "% of the iteration", "calls"):
        shown.add_column(column, justify="right")
    longest = sorted(profile.kernels.items(), key=lambda item: -item[1][0])[:most]
    for kernel, (seconds, calls) in longest:
        shown.add_row(kernel[:80], f"{1e3 * seconds:.1f}", f"{100 * seconds / profile.seconds:.0f}", str(calls))
    return shown


def main(arguments: Sequence[str] | None = None) -> dict[str, Profile]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, "tf32"], default=list(CONTENDERS))
    parser.add_argument("--kernels", type=int, default=10, help="how many to print; default: 10")
    parser.add_argument("--out", type=Path, help="default: the machine's folder of results")
    add_settings(parser, **SMALL)
    options = parser.parse_args(arguments)
    (setting, *others) = settings(options)
    if others:
        parser.error("one value for each option: this profiles one setting")
    out = options.out or environment.results_folder()
    here = environment.write(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    profiles = {}
    for name in options.contenders:
        with contender(name, setting, device, graph=False) as iterate:
            iterate()
            profiles[name] = profiled(iterate, device, str(out / f"iteration-{name}.trace.json"))
    record = {"environment": here, "setting": asdict(setting)}
    record["profiles"] = {name: asdict(profile) for name, profile in profiles.items()}
    (out / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    console = Console()
    for shown in (phase_table(profiles), *(kernel_table(*item, options.kernels) for item in profiles.items())):
        console.print(shown, "")
    print(out / "profile.json")
    return profiles


if __name__ == "__main__":
    main()
