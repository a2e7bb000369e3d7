"""What a call costs the host: microseconds of processor time and launches of every public call on its Triton kernels.

    python -m benchmarks.launch_cost                      prints them
    python -m benchmarks.launch_cost --out FILE --label L ... and adds them to a file, under a name; so may several
                                                          processes that take turns
    python -m benchmarks.launch_cost --show FILE          what is in that file, side by side
    python -m benchmarks.launch_cost --launchers          with the time of Triton's own launcher (see fake_driver.py)
    python -m benchmarks.launch_cost --profile CALL       where the time of one call goes

No GPU is needed: a driver that claims to be an H100 takes every launch and does nothing (fake_driver.py). So what is
measured is Python, PyTorch's dispatcher, autograd and allocator, and Triton, at the sizes of CIFAR-10 at IPC 10. All
calls take turns in one process; a sample is the mean of so many calls, and the median of the samples counts. Other
processes on the same cores move these numbers by tens of percent, so compare what was measured at the same time.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch

import ddfast
import ddfast.functional as DF
from benchmarks.environment import environment
from benchmarks.fake_driver import FakeDriver, fake_gpu
from benchmarks.intervals import median
from ddfast import keyed
from ddfast.augment import augment, tabulate, transform
from ddfast.memory import keep_freed_memory
from ddfast.operators import conv_block, norm_block

Call = Callable[[], Any]

CLASSES, IPC, REAL = 10, 10, 256
CALLS, ROUNDS = 100, 40  # calls of a sample, samples
YARDSTICK = "plain PyTorch: x.square().sum(), forward and backward"  # says how fast the machine was meanwhile


def calls() -> dict[str, Call]:
    """The public calls by name, on what an iteration at c10-ipc10 gives them."""
    real, syn = torch.randn(CLASSES * REAL, 128, 4, 4), torch.randn(CLASSES * IPC, 128, 4, 4, requires_grad=True)
    sides = ddfast.ClassSegments.uniform(CLASSES, REAL), ddfast.ClassSegments.uniform(CLASSES, IPC)
    rows = torch.randn(CLASSES * IPC, 512, requires_grad=True)
    moments = ddfast.ClassMoments.from_features(real, sides[0])
    images = torch.randn(CLASSES, IPC, 3, 32, 32, requires_grad=True)
    draws = keyed.uniform(0, 0, torch.arange(CLASSES), "a", 4)
    table = tabulate(draws, ("flip",), (32, 32))
    maps, batch = (torch.randn(IPC, *row, requires_grad=True) for row in ((128, 16, 16), (3, 32, 32)))
    kernel = torch.randn(128, 3, 3, 3)
    plain = torch.randn(8, requires_grad=True)

    def moment_matching() -> torch.Tensor:
        return DF.moment_matching(real, syn, *sides, covariance_weight=0.01)

    def without_grad() -> torch.Tensor:
        with torch.no_grad():
            return moment_matching()

    def to_moments() -> torch.Tensor:
        return DF.moment_matching(moments, syn, syn_segments=sides[1])

    def complexity() -> torch.Tensor:
        return DF.class_complexity(rows, sides[1], cmi_weight=100.0)

    def norm() -> torch.Tensor:
        return norm_block(maps, None, None, eps=1e-5, relu=True, pool=True)

    def conv() -> torch.Tensor:
        return conv_block(batch, kernel, None, None, padding=1, eps=1e-5)

    def of(function: Call, source: torch.Tensor) -> Call:
        upstream = torch.ones_like(function())
        return lambda: torch.autograd.grad(function(), source, upstream)

    return {
        YARDSTICK: lambda: torch.autograd.grad(plain.square().sum(), plain),
        "moment_matching, forward without grad": without_grad,
        "moment_matching, forward": moment_matching,
        "moment_matching, forward and backward": lambda: torch.autograd.grad(moment_matching(), syn),
        "moment_matching to moments, forward and backward": lambda: torch.autograd.grad(to_moments(), syn),
        "class_complexity, forward": complexity,
        "class_complexity, forward and backward": lambda: torch.autograd.grad(complexity(), rows),
        "class moments": lambda: ddfast.ClassMoments.from_features(real, sides[0]),
        "augment with its table, forward and backward": of(lambda: augment(images, draws), images),
        "augment by a table, forward and backward": of(lambda: transform(images, table), images),
        "norm_block, forward and backward": of(norm, maps),
        "conv_block, forward and backward": of(conv, batch),
    }


def measure(gpu: FakeDriver, found: dict[str, Call], rounds: int) -> dict[str, dict[str, Any]]:
    """Launches of a call and its samples in microseconds, by its name."""
    rows: dict[str, dict[str, Any]] = {}
    for name, call in found.items():
        for _ in range(10):  # compiled, planned and cached
            call()
        before = gpu.launches
        call()
        rows[name] = {"launches": gpu.launches - before, "microseconds": []}
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, call in found.items():
            start = time.process_time_ns()
            for _ in range(CALLS):
                call()
            rows[name]["microseconds"].append(round((time.process_time_ns() - start) / 1e3 / CALLS, 2))
    gc.enable()
    return rows


def table(runs: list[dict[str, Any]]) -> str:
    """A column for every run, and what its cost is of that of the run before on the same Triton."""
    names = [f"{run['label']}, Triton {version(run)}" for run in runs]
    lines = ["| call | " + " | ".join(f"{name}: µs (launches)" for name in names) + " |", "|---|" + "--:|" * len(runs)]
    for call in runs[0]["calls"]:
        cells = []
        for number, run in enumerate(runs):
            row = run["calls"][call]
            cells.append(f"{middle(row):.0f} ({row['launches']})")
            if number and version(runs[number - 1]) == version(run):
                cells[-1] += f", {middle(row) / middle(runs[number - 1]['calls'][call]):.2f} of it"
        lines.append(f"| {call} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def version(run: dict[str, Any]) -> str:
    return run["environment"]["versions"]["triton"]


def middle(row: dict[str, Any]) -> float:
    return median(row["microseconds"]).value


def show(path: Path) -> None:
    runs = json.loads(path.read_text())
    for run in runs:
        here, where = run["environment"], "with" if run["launchers"] else "without"
        versions = ", ".join(f"{name} {here['versions'][name]}" for name in ("python", "torch", "triton"))
        print(f"{run['label']}: commit {here['commit']}, {versions}, {here['cpu']}, {here['cores']} cores;")
        print(f"    {here['time']}, {run['protocol']}, {run['processes']} processes, {where} Triton's launcher")
    print(table(runs))


def add(path: Path, run: dict[str, Any]) -> None:
    """To the runs of a file; samples of another process join those of the same label and Triton."""
    runs = json.loads(path.read_text()) if path.exists() else []
    same = next((it for it in runs if (it["label"], version(it)) == (run["label"], version(run))), None)
    if same is None:
        runs.append(run)
    else:
        same["processes"] += 1
        for name, row in run["calls"].items():
            same["calls"][name]["microseconds"] += row["microseconds"]
    runs.sort(key=lambda it: (version(it), it["environment"]["time"]))
    path.write_text(json.dumps(runs) + "\n")


def profile(call: Call) -> None:
    call()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(1000):
        call()
    profiler.disable()
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--label", default="now")
    parser.add_argument("--show", type=Path)
    parser.add_argument("--launchers", action="store_true")
    parser.add_argument("--profile", metavar="CALL")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.show:
        show(options.show)
        return
    torch.set_num_threads(1)
    keep_freed_memory()  # as CUDA's allocator does
    with fake_gpu(launchers=options.launchers) as gpu:
        found = calls()
        if options.profile:
            profile(found[options.profile])
            return
        run = {
            "label": options.label,
            "environment": environment(),
            "launchers": options.launchers,
            "processes": 1,
            "protocol": f"process time, {options.rounds} rounds in turns of {CALLS} calls, median",
            "calls": measure(gpu, found, options.rounds),
        }
    print(table([run]))
    if options.out:
        add(options.out, run)


if __name__ == "__main__":
    main()
