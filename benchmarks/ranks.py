"""Iterations of one process against those of several, each with one thread or one GPU, and the bytes that travel.

    python -m benchmarks.ranks                 two processes; DM + CM, all losses and IDM on CIFAR-10's shapes at IPC 10
    python -m benchmarks.ranks --processes 4
    python -m benchmarks.ranks --show FILE     what was measured

Starts itself under torchrun. The processes take turns: in one the first of them has all classes while the others sleep,
in the next each has its own. An iteration ends, as in a run, with the exchange of its losses. Bytes are those of the
tensors that leave a process for another, a copy for each that gets one. Beside them what processes would send that have
a part of the images of every class: they average gradients, those of the images and in IDM those of the networks, which
takes 2 (N − 1) times their bytes between N processes. Writes ranks.json into --out, with all samples.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import environment, intervals
from benchmarks.clock import HostClock
from benchmarks.iterations import LOSSES, Setting, engine
from ddfast.distill.config import Config
from ddfast.distill.folder import State
from ddfast.distill.loop import Distiller
from ddfast.distill.queue import TRAINED
from ddfast.distill.setup import find_device
from ddfast.memory import keep_freed_memory
from ddfast.ranks import ALONE, Ranks

CASES = {  # with keys as published for CIFAR-10 at IPC 10
    "DM + CM": {"centralization_weight": 0.0},
    "all losses": LOSSES["all"],
    "IDM": {
        "method": "idm",
        "partition": 2,
        "image_lr": 0.2,
        "cross_entropy_weight": 0.5,
        "covariance_weight": 0.0,
        "centralization_weight": 0.0,
    },
}
QUICK = {"classes": 4, "size": 16, "ipc": 2, "real": 4, "width": 4, "depth": 2, "pool_width": 4}
UNITS = ("B", "KiB", "MiB")
COLUMNS = ("iteration", "processes", "1 process", "each its classes", "speed-up", "sent", "averaging", "checkpoint")


def iterate(distiller: Distiller, state: State) -> None:
    """As a run does it that logs every iteration."""
    terms = distiller.iterate(state)
    distiller.report(distiller.ranks.table((0, *terms.tolist()))[:, 1:].sum(0))


def measure(name: str, setting: Setting, rounds: int, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Seconds of every round as this rank has them, and bytes of all ranks."""
    config = setting.config("float32").replace(**CASES[name])
    distiller, state = engine(config, setting, device, ranks)
    turns: dict[str, Callable[[], None]] = {"1": lambda: None, str(ranks.size): lambda: iterate(distiller, state)}
    if ranks.first:
        alone = engine(config, setting, device)
        turns["1"] = lambda: iterate(*alone)
    for turn in turns.values():  # warm
        turn()
    with counted(ranks) as sent:
        iterate(distiller, state)
        in_iteration = sum(sent)
        for tensor in (state.images, state.momentum):
            ranks.collected(tensor, ranks.parts(setting.classes, setting.ipc))
        in_checkpoint = sum(sent) - in_iteration
    iteration, checkpoint = map(int, ranks.table((in_iteration, in_checkpoint)).sum(0))
    averaging = 2 * (ranks.size - 1) * gradients(config, setting, distiller)
    return {
        "name": name,
        "setting": asdict(replace(setting, losses=name)),
        "processes": ranks.size,
        "seconds": take_turns(turns, rounds, ranks),
        "bytes": {"iteration": iteration, "averaging": averaging, "checkpoint": checkpoint},
    }


def take_turns(turns: dict[str, Callable[[], None]], rounds: int, ranks: Ranks) -> dict[str, list[float]]:
    """Each once a round, in an order that is random and the same on all ranks."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    names, order, clock = list(turns), random.Random(0), HostClock()
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            ranks.meet()
            start = clock.mark()
            turns[name]()
            samples[name].append(clock.seconds(start, clock.mark()))
    return samples


def gradients(config: Config, setting: Setting, distiller: Distiller) -> int:
    """Bytes of the gradients of an iteration: of the images, and at every step of each network that IDM teaches."""
    images = setting.classes * setting.ipc * 3 * setting.size**2
    weights = sum(weight.numel() for weight in distiller.network.parameters())
    return 4 * (images + (TRAINED * config.queue_steps * weights if config.method == "idm" else 0))


@contextmanager
def counted(ranks: Ranks) -> Iterator[list[int]]:
    """The bytes that this rank sends in the block, a number for each time."""
    sent: list[int] = []
    copies = ranks.size - 1

    def counting(send: Callable[..., Any], count: Callable[..., int]) -> Callable[..., Any]:
        def counted_send(*arguments: Any) -> Any:
            sent.append(count(*arguments))
            return send(*arguments)

        return counted_send

    counts: dict[str, Callable[..., int]] = {
        "all_gather": lambda rows, mine: copies * nbytes(mine),
        "broadcast": lambda tensor, source: copies * nbytes(tensor) if source == ranks.rank else 0,
        "send": lambda tensor, target: nbytes(tensor),
    }
    with patch.multiple(dist, **{name: counting(getattr(dist, name), count) for name, count in counts.items()}):
        yield sent


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    one, several = row["seconds"]["1"], row["seconds"][str(row["processes"])]
    faster = intervals.ratio(one, several)
    return (
        row["name"],
        str(row["processes"]),
        *(f"{intervals.median(samples).value:.3g} s" for samples in (one, several)),
        f"{faster.value:.2f}× ({faster.low:.2f}–{faster.high:.2f})",
        *(_size(row["bytes"][name]) for name in ("iteration", "averaging", "checkpoint")),
    )


def _size(count: int) -> str:
    power = min(max(count.bit_length() - 1, 0) // 10, 2)
    value = count / 1024**power
    return f"{value:.0f} {UNITS[power]}" if value >= 100 else f"{value:.3g} {UNITS[power]}"


def show(rows: Iterable[dict[str, Any]]) -> None:
    shown = Table(*COLUMNS, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        shown.add_row(*cells(row))
    Console(width=160).print(shown)


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="default: the machine's folder of results")
    parser.add_argument("--show", type=Path)
    parser.add_argument("--quick", action="store_true", help="only that it runs")
    options = parser.parse_args(words)
    if options.show:
        show(json.loads(options.show.read_text())["rows"])
        return
    if options.processes < 2:
        parser.error(f"--processes must be 2 or more, got {options.processes}")
    ranks = Ranks.join()
    if ranks is ALONE:
        torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes))
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", *torchrun, "-m", "benchmarks.ranks", *words])
    keep_freed_memory()
    torch.set_num_threads(1)
    device = find_device("auto", ranks)
    setting = Setting(**QUICK) if options.quick else Setting()
    rounds = 2 if options.quick else options.rounds
    rows = [measure(name, setting, rounds, device, ranks) for name in CASES]
    if ranks.first:
        out = options.out or environment.results_folder()
        out.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment.environment(), "rows": rows}
        (out / "ranks.json").write_text(json.dumps(record, indent=1) + "\n")
        show(rows)
        print(out / "ranks.json")
    ranks.close()


if __name__ == "__main__":
    main()
