"""How long operators, blocks and iterations take, and what iterations hold: what README says of a GPU."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from benchmarks import blocks, intervals
from benchmarks.blocks import PRECISIONS as BLOCK_PRECISIONS
from benchmarks.cases import Case as Measurable
from benchmarks.cases import backends
from benchmarks.clock import HostClock
from benchmarks.environment import environment
from benchmarks.gpu.case import Case, Given, NotHere, Record, Wrong
from benchmarks.gpu.probe import known_ceilings
from benchmarks.iterations import Setting, contender
from benchmarks.measure import described, measure, take_turns
from benchmarks.workloads import WORKLOADS
from ddfast.distill.setup import find_device

TIMED = ("c10-ipc10", "tiny-ipc50", "c10-ipc50", "tiny-rows-ipc10")
OPERATORS = ("moment_matching", "class_complexity", "augment", "augment_real", "class_moments")
COMPILED = ("c10-ipc10", "tiny-ipc50")  # torch.compile takes its time: two workloads show what it is worth
TOY = {"classes": 2, "size": 16, "ipc": 2, "real": 4, "width": 4, "pool_width": 4, "depth": 2}
SETTINGS = {"c10-ipc10 dm": Setting(losses="dm"), "c10-ipc10 iid-dm": Setting(), "c10-ipc10 all": Setting(losses="all")}
SINGLY = " without graph"
CONTENDERS = ("published", *(f"{precision}{how}" for precision in ("float32", "tf32", "bf16") for how in ("", SINGLY)))
LARGE = Setting(classes=200, size=64, ipc=50, depth=4, budget="8GiB", losses="iid-dm")  # as TinyImageNet at IPC 50
HELD = 4  # iterations whose peak of memory counts, after one that records a graph


def operator_cases(given: Given) -> Iterator[Case]:
    for name in given.pick(TIMED, TIMED[3:]):
        for operator in OPERATORS:
            yield Case(f"{operator} {name}", partial(timed, given, operator, name, "eager"), limit=60)
    for name in given.pick(TIMED, TIMED[3:]):
        for operator in OPERATORS:
            yield Case(f"{operator} {name} against the loop", partial(timed, given, operator, name, "loop"), limit=60)


def compile_cases(given: Given) -> Iterator[Case]:
    for name in given.pick(COMPILED, COMPILED[:1]):
        for operator in given.pick(OPERATORS[:3], OPERATORS[1:2]):
            yield Case(f"{operator} {name} compiled", partial(timed, given, operator, name, "compile"), limit=90)


def timed(given: Given, operator: str, name: str, baseline: str) -> Record:
    """All backends against a baseline, in turns; against eager PyTorch alone they are timed for long."""
    case = Measurable(operator, WORKLOADS[name].at("quick" if given.toy else "full"), given.device)
    budget, rounds = ((1.0, (5, 40)) if baseline == "eager" else (0.5, (3, 10))) if not given.toy else (0.0, (2, 2))
    ours = backends(operator, given.device)
    if baseline != "eager":
        ours = [backend for backend in ours if backend != "reference"] or ours
    torch.compiler.reset()
    measured = measure(case, budget, rounds, {*ours, baseline})
    ceilings, here = known_ceilings(given), environment()
    benchmarks = [
        {"extra_info": described(measured, case, of, direction, ceilings, here), "stats": {"data": rounded(seconds)}}
        for of, directions in measured.samples.items()
        for direction, seconds in directions.items()
    ]
    found = {"benchmarks": benchmarks, "refused": measured.refused, "not_captured": measured.not_captured}
    if measured.refused:
        raise Wrong("; ".join(measured.refused.values()), **found)
    return found


def rounded(seconds: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in seconds]


def block_cases(given: Given) -> Iterator[Case]:
    """norm_block and conv_block against plain modules, which in half precision may well be faster than conv_block."""
    for precision, (dtype, layout) in given.pick(list(BLOCK_PRECISIONS.items()), list(BLOCK_PRECISIONS.items())[:1]):
        for case in blocks.block_cases(given.pick(256, 4), dtype, layout):
            singly = {name: call for name, call in case.contenders.items() if name != "compile"}
            run = partial(timed_block, given, replace(case, contenders=singly), precision)
            yield Case(f"{case.name} {precision}", run)


def timed_block(given: Given, case: blocks.Case, precision: str) -> Record:
    measured = blocks.measure(case, quick=True) if given.toy else blocks.measure(case, quick=False)
    seconds = {name: rounded(values) for name, values in measured["seconds"].items()}
    return {"block": {"precision": precision, **measured, "seconds": seconds}}


def iteration_cases(given: Given) -> Iterator[Case]:
    find_device("auto")  # cuDNN as in a run
    for name, setting in settings(given).items():
        yield Case(f"iteration {name}", partial(timed_iterations, given, name, setting), limit=120)


def settings(given: Given) -> dict[str, Setting]:
    """In a rehearsal one of them, at a size that a CPU does at once."""
    return SETTINGS if not given.toy else {"c10-ipc10 iid-dm": replace(SETTINGS["c10-ipc10 iid-dm"], **TOY)}


def timed_iterations(given: Given, name: str, setting: Setting) -> Record:
    """The published loop and ddfast in its precisions, with a graph and without, in turns by the host's clock."""
    turns: dict[str, list[Callable[[], dict[str, float]]]] = {}
    first, refused = {}, {}
    with ExitStack() as stack:
        for each in CONTENDERS:
            graph, precision = not each.endswith(SINGLY), each.removesuffix(SINGLY)
            if not given.cuda and (precision == "tf32" or not graph):
                refused[each] = "of CUDA alone"
                continue
            try:
                iterate = stack.enter_context(contender(precision, setting, given.device, graph))
                first[each] = once(given, iterate)["iteration"]
            except Exception as error:  # of one contender: the others are worth their time
                refused[each] = f"{type(error).__name__}: {error}"[:300]
                continue
            turns[each] = [partial(once, given, iterate)]
        samples = take_turns(turns, *((0.0, (2, 2)) if given.toy else (6.0, (5, 60))))
    seconds = {each: directions["iteration"] for each, directions in samples.items()}
    here = environment()
    benchmarks = [
        {
            "extra_info": {
                "operator": "iteration",
                "workload": name,
                "scale": "quick" if given.toy else "full",
                "direction": "iteration",
                "contender": each,
                "device": here["gpu"] or here["cpu"],
                "threads": here["threads"],
                "versions": here["versions"],
                "commit": here["commit"],
                "median_s": asdict(intervals.median(seconds[each])),
                "times_as_fast_as": {
                    other: asdict(intervals.ratio(seconds[other], seconds[each])) for other in seconds if other != each
                },
                "first_call_s": first[each],
            },
            "stats": {"data": rounded(seconds[each])},
        }
        for each in seconds
    ]
    wrong = {each: why for each, why in refused.items() if why != "of CUDA alone"}
    found = {"benchmarks": benchmarks, "refused": refused}
    if wrong:
        raise Wrong("; ".join(f"{each}: {why}" for each, why in wrong.items()), **found)
    return found


def once(given: Given, iterate: Callable[[], Any]) -> dict[str, float]:
    clock = HostClock()
    start = clock.mark()
    iterate()
    if given.cuda:
        torch.cuda.synchronize()
    return {"iteration": clock.seconds(start, clock.mark())}


def memory_cases(given: Given) -> Iterator[Case]:
    find_device("auto")
    for name, setting in settings(given).items():
        for each in CONTENDERS:
            yield Case(f"memory {name} {each}", partial(held, given, setting, each), limit=60)


def large_cases(given: Given) -> Iterator[Case]:
    """Of images as TinyImageNet's at IPC 50: what an iteration takes and holds."""
    find_device("auto")
    for each in ("bf16", "float32", "tf32", f"bf16{SINGLY}", "published"):
        yield Case(f"tiny-ipc50 {LARGE.losses} {each}", partial(held, given, LARGE, each), limit=60)


def held(given: Given, setting: Setting, each: str) -> Record:
    """Bytes beyond data and images that a few iterations allocate and reserve at their peak, and their seconds."""
    graph, precision = not each.endswith(SINGLY), each.removesuffix(SINGLY)
    if not given.cuda and (precision == "tf32" or not graph):
        raise NotHere("of CUDA alone")
    setting = replace(setting, **given.pick({}, TOY))
    if given.cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found: Record = {"setting": asdict(setting), "contender": each}
    with contender(precision, setting, given.device, graph) as iterate:
        before = torch.cuda.memory_allocated() if given.cuda else 0
        try:
            seconds = [once(given, iterate)["iteration"] for _ in range(2 + HELD)]
        except torch.OutOfMemoryError as error:
            if precision != "published":
                raise
            return {"held": found | {"out_of_memory": str(error)[:300]}}  # a finding, not a failure
        found["iteration_seconds"] = rounded(seconds)
        if given.cuda:
            found["peak_bytes"] = {
                "before": before,
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
            }
    return {"held": found}
