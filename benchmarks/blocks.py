"""Blocks and networks, fused against plain modules, on this machine's CPU or GPU.

    python -m benchmarks.blocks --out FILE    norm_block and conv_block, a ConvNet-3 and a ResNet-18, with all samples
    python -m benchmarks.blocks --show FILE   what was measured
    python -m benchmarks.blocks --compile     networks compiled by torch.compile as well, plain and fused: minutes more
    python -m benchmarks.blocks --quick       only that it runs

All contenders take turns in one process, under the same settings of the allocator, and results are compared before they
are timed. The floor is that of the bytes: each input read once and each result written once, at the speed of a copy.
Prints a line for each case: milliseconds, how many times as fast as plain modules, and the most memory either takes.
Plain modules get images and weights in the memory format that is named; fused networks choose theirs.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from copy import copy as copy_of
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import intervals
from benchmarks.ceilings import measure_ceilings
from benchmarks.clock import HostClock, clock_of
from benchmarks.environment import environment
from benchmarks.files import load_json, save_json
from benchmarks.measure import take_turns
from benchmarks.memory import peak_bytes
from ddfast.memory import keep_freed_memory
from ddfast.networks import Network, build
from ddfast.operators import conv_block, norm_block
from tests.oracle import assert_accurate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = {
    "float32": (torch.float32, torch.contiguous_format),
    "float32 channels_last": (torch.float32, torch.channels_last),
    "bfloat16 channels_last": (torch.bfloat16, torch.channels_last),
}
EPS, BUDGET, ROUNDS = 1e-5, 3.0, (5, 30)
Contenders = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    name: str
    contenders: Contenders
    floor: int = 0  # bytes


def norm_modules(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], eps=EPS), inplace=True), 2)


def conv_modules(x: Tensor, kernel: Tensor) -> Tensor:
    return norm_modules(F.conv2d(x, kernel, padding=1))


def differentiated(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    out = function(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, torch.ones_like(out))[0]


def inference(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x)


def block_cases(n: int, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Case]:
    for name, shape in (
        ("norm_block", (n, 128, 32, 32)),
        ("norm_block", (n, 128, 16, 16)),
        ("conv_block", (n, 3, 32, 32)),
    ):
        x = torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=layout)
        kernel = torch.randn(128, 3, 3, 3, device=DEVICE).to(dtype)
        fused, modules = partial(norm_block, weight=None, bias=None, eps=EPS, relu=True, pool=True), norm_modules
        if name == "conv_block":
            fused = partial(conv_block, kernel=kernel, weight=None, bias=None, padding=1, eps=EPS)
            modules = partial(conv_modules, kernel=kernel)
        right_or_raise(fused, modules, x[:4])
        functions = {"eager": modules, "compile": torch.compile(modules, dynamic=False), "fused": fused}
        item, results = x.element_size(), n * 128 * (shape[2] // 2) * (shape[3] // 2)
        for run, moved in ((inference, x.numel() + results), (differentiated, 3 * x.numel() + 2 * results)):
            calls = {key: partial(run, function, x) for key, function in functions.items()}
            yield Case(f"{name} {'x'.join(map(str, shape))} {run.__name__}", calls, item * moved)


def right_or_raise(fused: Callable[..., Tensor], modules: Callable[..., Tensor], x: Tensor) -> None:
    keywords = getattr(modules, "keywords", {})
    wide = {key: value.double().contiguous() for key, value in keywords.items()}
    exact = getattr(modules, "func", modules)(x.double().contiguous(), **wide)
    assert_accurate([(fused(x), modules(x.contiguous()), exact)], x.dtype, "fused")


def network_cases(name: str, n: int, dtype: torch.dtype, layout: torch.memory_format, compile: bool) -> Iterator[Case]:
    def made(fused: bool) -> Network:
        generator = torch.Generator(DEVICE).manual_seed(0)
        keys = {"channels": 3, "num_classes": 10, "size": (32, 32), "device": DEVICE, "generator": generator}
        network = build(name, **keys, fused=fused).to(dtype)
        return network if fused else network.to(memory_format=layout)

    plain, fused = made(False).requires_grad_(False), made(True).requires_grad_(False)
    networks = {"eager": plain, "fused": fused}
    if compile:
        networks |= {"compile": compiled(plain), "compiled fused": compiled(fused)}
    x = torch.randn(n, 3, 32, 32, device=DEVICE).to(dtype).contiguous(memory_format=layout)
    labels = torch.randint(10, (n,), device=DEVICE)
    few = x[: max(1, n * 100 // 256)].clone()
    yield Case(f"{name} forward of {n}", {key: partial(inference, it.embed, x) for key, it in networks.items()})
    yield Case(
        f"{name} gradient to {len(few)} images",
        {key: partial(differentiated, it.embed, few) for key, it in networks.items()},
    )
    yield Case(
        f"{name} training step of {n}",
        {key: training_step(it.requires_grad_(), x, labels) for key, it in networks.items()},
    )


def compiled(network: Network) -> Network:
    """Its weights, its methods compiled."""
    made = copy_of(network)
    made.embed, made.forward = (torch.compile(method, dynamic=False) for method in (network.embed, network.forward))
    return made


def training_step(network: Network, x: Tensor, labels: Tensor) -> Callable[[], None]:
    sgd = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(network(x).float(), labels).backward()
        sgd.step()

    return step


def measure(case: Case, quick: bool) -> dict[str, Any]:
    clock = clock_of(DEVICE)
    turns = {name: [partial(timed, call, clock)] for name, call in case.contenders.items()}
    samples = take_turns(turns, *((0.0, (2, 2)) if quick else (BUDGET, ROUNDS)))
    return {
        "case": case.name,
        "floor_bytes": case.floor,
        "seconds": {name: list(samples[name]["call"]) for name in samples},
        "peak_bytes": {name: peak_bytes(call, DEVICE) for name, call in case.contenders.items()},
    }


def line(result: dict[str, Any], copy: float) -> str:
    seconds, peak = result["seconds"], result["peak_bytes"]
    cells = [f"{name} {1e3 * intervals.median(samples).value:.1f} ms" for name, samples in seconds.items()]
    cells += [f"{name} {peak[name] / 2**20:.0f} MiB" for name in ("eager", "fused")]
    cells += [f"{intervals.ratio(seconds[name], seconds['fused'])} times {name}" for name in seconds if name != "fused"]
    if result["floor_bytes"]:
        cells.append(f"{result['floor_bytes'] / copy / intervals.median(seconds['fused']).value:.0%} of the floor")
    return " | ".join((result["precision"], result["case"], *cells))


def timed(call: Callable[[], Any], clock: HostClock) -> dict[str, float]:
    start = clock.mark()
    call()
    return {"call": clock.seconds(start, clock.mark())}


def results(copy: float, quick: bool, compile: bool) -> Iterator[dict[str, Any]]:
    n = 4 if quick else 256
    for precision, (dtype, layout) in PRECISIONS.items():
        torch.compiler.reset()
        networks = (network_cases(name, n, dtype, layout, compile) for name in ("convnet", "resnet18"))
        for case in itertools.chain(block_cases(n, dtype, layout), *networks):
            result = {"precision": precision} | measure(case, quick)
            print(line(result, copy), flush=True)
            yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.show:
        shown = load_json(options.show)
        print(heading(shown["environment"]["threads"], shown["copy"]))
        for result in shown["results"]:
            print(line(result, shown["copy"]))
        return
    keep_freed_memory()
    copy = measure_ceilings(DEVICE, quick=options.quick).copy
    print(heading(torch.get_num_threads(), copy))
    measured = list(results(copy, options.quick, options.compile))
    if options.out:
        save_json(options.out, {"environment": environment(), "copy": copy, "results": measured})


def heading(threads: int, copy: float) -> str:
    return f"{threads} threads, a copy moves {copy / 1e9:.1f} GB/s"


if __name__ == "__main__":
    main()
