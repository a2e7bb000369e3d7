"""What the host does in an iteration beside a replayed graph: operators that it calls, and its own time.

    python -m benchmarks.host_cost
    python -m benchmarks.host_cost --iterations 160

No GPU is needed. What a CUDA graph would replay is left out and counts as one call; all the rest runs as in a run, on
CPU tensors of tiny networks. Operators are what reaches PyTorch's dispatcher: on a GPU each is a launch, a copy or a
view. "as written" are those of the captured part without its graph. Time is that of the process, without counting. A
pool network's weights are copied by one operator, which is a loop over tensors here and a launch or two on a GPU; its
time is told apart. The numbers are means over iterations.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.iterations import LOSSES, Setting, engine, pool_networks
from ddfast.distill import pool as pools
from ddfast.distill.late import LATE, Late
from ddfast.training import BATCH, Steps, optimizer

SETTING = Setting(ipc=2, real=4, size=16, width=8, depth=2, pool_width=8)
IDM = {**LOSSES["dm"], "method": "idm", "partition": 2, "cross_entropy_weight": 0.5}
CASES = {"DM": LOSSES["dm"], "IID-DM": LOSSES["iid-dm"], "CMI-DM": LOSSES["cmi-dm"], "IDM": IDM}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """Of a part of the host's work: operators, seconds of the process; and operators of what was left to the graph."""

    operators: float
    seconds: float
    replays: int
    as_written: int


class Counter(TorchDispatchMode):
    """Counts the operators of its block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, overload: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.calls += 1
        return overload(*arguments, **(options or {}))


class Replay:
    """Stands for a graph: does nothing but count, and keeps what the work gave when it was done once."""

    def __init__(self, work: Callable[[], Any]) -> None:
        with Counter() as counter:
            self._result = work()
        self.as_written, self.calls = counter.calls, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self._result


def iteration_costs(name: str, iterations: int) -> dict[str, Cost]:
    """Of what an iteration draws, of copying a pool network's weights for it, of all of it, and of its logging too."""
    config = SETTING.config("float32").replace(centralization_weight=0.0, cmi_weight=0.0).replace(**CASES[name])
    distiller, state = engine(config, SETTING, CPU)
    distiller.iterate(state)
    replays = [Replay(lambda: distiller._step(state))]
    distiller._steps = state, replays[0]
    if distiller.teacher is not None:
        replays.append(Replay(distiller.teacher._step))
        distiller.teacher._learn = replays[1]
    late = Late(CPU, LATE)

    def draw() -> None:
        distiller._deal(state)
        state.iteration += 1

    def iterate_and_log() -> None:
        late.put(state.iteration, distiller.iterate(state))
        for _, terms in late.due(state.iteration):
            distiller.report(distiller.ranks.table((0, *terms))[:, 1:].sum(0))

    parts: dict[str, Callable[[], object]] = {"draw": draw}
    if pool := distiller.pool:
        parts["of that, weights"] = lambda: pools._copy_weights(pool._weights[0], pool._target)
    parts |= {"iterate": lambda: distiller.iterate(state), "iterate and log": iterate_and_log}
    return {part: cost(work, iterations, replays) for part, work in parts.items()}


def pool_step_cost(strategy: tuple[str, ...], iterations: int) -> Cost:
    """Of a step of a pool's network."""
    dataset = SETTING.dataset(CPU)
    images = dataset.train.images.repeat(-(-BATCH // len(dataset.train.images)), 1, 1, 1)[:BATCH]
    labels = torch.arange(BATCH) % SETTING.classes
    network = pool_networks(SETTING.config("float32"), SETTING, CPU)[0].requires_grad_()
    replays: list[Replay] = []

    def capture(work: Callable[[], None]) -> Replay:
        replays.append(Replay(work))
        return replays[0]

    keys = {"prepare": dataset.normalise, "strategy": strategy, "capture": capture}
    steps, shuffle = Steps(network, optimizer(network, 0.01), images, labels, **keys), torch.Generator()
    return cost(lambda: steps.epoch(shuffle, lambda: None), iterations, replays)


def cost(work: Callable[[], object], iterations: int, replays: Sequence[Replay]) -> Cost:
    work()
    before = [replay.calls for replay in replays]
    with Counter() as counter:
        for _ in range(iterations):
            work()
    replayed = sum(replay.calls for replay in replays) - sum(before)
    start = time.process_time()
    for _ in range(iterations):
        work()
    seconds = (time.process_time() - start) / iterations
    written = sum(
        replay.as_written * ((replay.calls - begun) // (2 * iterations))
        for replay, begun in zip(replays, before, strict=True)
    )
    return Cost((counter.calls + replayed) / iterations, seconds, replayed // iterations, written)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Cost]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=64, help="of which the means are; default: 64")
    options = parser.parse_args(arguments)
    found = {name: iteration_costs(name, options.iterations) for name in CASES}
    strategies = {"step": (), "step, augmented": ("crop", "flip")}
    found["pool"] = {part: pool_step_cost(strategy, options.iterations) for part, strategy in strategies.items()}
    columns = ("", "part", "operators", "of them replays", "as written", "µs of the host")
    shown = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for name, parts in found.items():
        for part, it in parts.items():
            numbers = f"{it.operators:.1f}", str(it.replays), str(it.as_written), f"{1e6 * it.seconds:.0f}"
            shown.add_row(name, part, *numbers)
    Console().print(shown)
    return found


if __name__ == "__main__":
    main()
