"""A moments kernel of its own for Hopper, on paper: how accurate half-precision splits are, and what a step costs.

    python -m benchmarks.hopper accuracy    errors of Sigma, Delta and the gradient, tensor cores that truncate
    python -m benchmarks.hopper cycles      compiles the kernels and counts what a multiprocessor does in a step
    python -m benchmarks.hopper card        on a Hopper GPU: the kernel beside Triton's, errors and times
    ... --write                             puts the table into docs/moments-on-hopper.md

The accuracy is simulated (benchmarks/splits.py). The cycles are counted in the machine code of the loop, with the rates
of the data sheets. Neither is measured.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from unittest import mock

import torch
import triton
import triton.language as tl

from benchmarks.calls import losses
from benchmarks.clock import clock_of
from benchmarks.compiled import TOOLS
from benchmarks.environment import ROOT
from benchmarks.floors import floor
from benchmarks.graphs import Graph
from benchmarks.kernels import CHIPS, launches
from benchmarks.splits import STEP, D, P, accuracy
from benchmarks.workloads import WORKLOADS, Workload
from ddfast.kernels import tiling
from ddfast.kernels.moments import moments_kernel
from ddfast.kernels.tiling import rows_of_a_program
from ddfast.operators.launch import chip_of, forget
from ddfast.operators.triton_matching import Side, Terms, partials_of

CLOCK, MULTIPROCESSORS, SCHEDULERS = 1.755e9, 132, 4
RATES = {"H100": (3.35e12, 3.0e12), "H200": (4.8e12, 4.3e12)}  # bytes a second: data sheet, and what a copy reaches
FLOPS = {"TF32": 2048, "F16": 4096}  # a cycle of a multiprocessor
SHARED = 128  # bytes a cycle
WAIT = 100  # cycles: a barrier, and until a product starts; assumed
START = 3000  # cycles: the pivot and the first rows come; assumed
HALF_RATE = ("F2FP",)  # conversions to halves


@dataclass
class Loop:
    """What one pass of a kernel's loop does, of all warps of a block."""

    name: str
    columns: int
    warps: int
    registers: int
    blocks: int  # of a multiprocessor
    issued: float = 0  # cycles of a scheduler
    alone: float = 0  # of these between the wait for products and the next ones
    tensor: float = 0
    shared: float = 0  # bytes
    products: int = 0
    asynchronous: bool = False  # other work is done while products are under way

    def step(self, rate: float) -> dict[str, float]:
        """Cycles of STEP columns, by unit, and in all."""
        scale = STEP / self.columns
        cycles = {
            "bytes": STEP * D * 4 / (rate / MULTIPROCESSORS / CLOCK),
            "tensor": self.tensor * scale,
            "issue": self.issued * scale,
            "shared": self.shared / SHARED * scale,
        }
        chain = self.tensor + WAIT + (self.alone if self.asynchronous else self.issued)
        return cycles | {"in all": max(*cycles.values(), chain * scale / self.blocks)}


def count(loop: Loop, sass: str) -> Loop:
    """Counts the loop that holds most products, without the path that is taken after a vote of the block."""
    text = [line.strip() for line in sass.splitlines()]
    code = [(m[1], None) if (m := re.match(r"(\.L_x_\d+):", it)) else (None, it) for it in text]
    labels = {label: at for at, (label, _) in enumerate(code) if label}
    backward = [
        (labels[m[1]], at)
        for at, (_, it) in enumerate(code)
        if it and (m := re.search(r"\bBRA\S* .*?`?\(?(\.L_x_\d+)", it)) and labels.get(m[1], at) < at
    ]
    begin, end = max(
        backward, key=lambda it: (sum("HGMMA" in (s or "") for _, s in code[it[0] : it[1]]), it[0] - it[1])
    )
    at, voted, waiting, per = begin, False, False, loop.warps / SCHEDULERS
    while at <= end:
        it = code[at][1] or ""
        at += 1
        if not (m := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", it)):
            continue
        name, rest = m[1], m[2]
        cost = per * (2 if name.startswith(HALF_RATE) else 1)
        loop.issued += cost
        loop.alone += cost * waiting
        if name.startswith("HGMMA"):
            rows, n, k = map(int, re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", name).groups())
            kind = "TF32" if "TF32" in name else "F16"
            groups, size = loop.warps / 4, 4 if kind == "TF32" else 2
            loop.tensor += groups * 2 * rows * n * k / FLOPS[kind]
            loop.shared += groups * size * k * (n + (rows if rest.split(",")[1].strip().startswith("gdesc") else 0))
            loop.products, waiting = loop.products + 1, False
        elif name.startswith("WARPGROUP.DEPBAR"):
            waiting = True
        elif name.startswith(("LDS", "STS", "LDSM", "LDGSTS")):
            width = next((int(w) // 8 for w in re.findall(r"\b(64|128)\b", name)), 4)
            loop.shared += loop.warps * 32 * (16 if name.startswith("LDSM") else width)
        voted = voted or name.startswith("BAR.RED")
        if voted and name.startswith("BRA"):
            at, voted = labels[re.search(r"(\.L_x_\d+)", rest)[1]], False
    if loop.asynchronous:
        loop.shared += loop.columns * D * 4  # the bulk copy's own writes
    return loop


@triton.jit
def half_square_of_halves(y):
    """In the place of `half_square` of the moments: a scale of the step brings its largest |y| to [2^9, 2^10)."""
    bits = tl.max(tl.max(tl.abs(y), 1), 0).to(tl.int32, bitcast=True)
    exponent = tl.minimum(tl.maximum(263 - (bits >> 23), 67), 187)  # of 2^-60 to 2^60
    scaled = y * (exponent << 23).to(tl.float32, bitcast=True)
    hi = scaled.to(tl.float16)
    part = tl.dot(hi, tl.trans((scaled - hi.to(tl.float32)).to(tl.float16)))
    return tl.dot(hi, tl.trans(hi * 0.5), part) * ((381 - 2 * exponent) << 23).to(tl.float32, bitcast=True)


@contextmanager
def one_tile() -> Iterator[None]:
    """Triton's kernel takes all descriptors as one tile, as the Hopper kernel does, and not in three tiles of 64."""
    forget()
    with mock.patch.object(tiling, "moments_tiling", return_value=tiling.Tiling(D, 2, P, 8, 3)):
        yield
    forget()


def triton_loop(workload: Workload, name: str, halves: bool = False) -> Loop:
    with one_tile():
        found = launches(losses(workload, torch.float32), CHIPS["H100"])
    launch = next(it for it in found if it.kernel.__name__ == "moments_kernel")
    if halves:
        fn = moments_kernel.fn
        other = FunctionType(fn.__code__, fn.__globals__ | {"half_square": half_square_of_halves}, fn.__name__)
        other.__annotations__, other.__module__ = fn.__annotations__, fn.__module__
        runtime = [it.name for it in moments_kernel.params if it.do_not_specialize]
        launch = replace(launch, kernel=triton.jit(other, do_not_specialize=runtime))
    built = launch.compile(90)
    if complaint := " and ".join(built.complaints):
        name = f"{name} ({complaint})"
    columns = launch.arguments["ROWS"] * launch.arguments["BLOCK_P"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.cubin)
        file.flush()
        sass = disassembled(Path(file.name))
    return count(Loop(name, columns, launch.warps, built.usage["registers"], built.blocks), sass)


def hopper_loop() -> Loop:
    """By the flags of setup.py."""
    include = Path(torch.__file__).parent / "include"
    flags = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", "-std=c++17", "-O3", "-Xptxas=-v"]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "moments.cubin"
        command = ["nvcc", *flags, "-gencode=arch=compute_90a,code=sm_90a", "-cubin", "-isystem", include, "-Icsrc"]
        command += ["csrc/cuda/moments_hopper.cu", "-o", cubin]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
        if "serialized" in said or not re.search(r" 0 bytes spill stores", said):
            raise SystemExit(said)
        registers = int(re.search(r"Used (\d+) registers", said)[1])
        loop = Loop("Hopper, fp16", STEP, 8, registers, 1, asynchronous=True)
        return count(loop, disassembled(cubin))


def disassembled(cubin: Path) -> str:
    return subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout


def in_tf32(half: Loop) -> Loop:
    """The same kernel with TF32 operands: as wide again, and half as many columns to a product."""
    loop = Loop("Hopper, tf32 (not compiled)", half.columns, half.warps, half.registers, 1, asynchronous=True)
    loop.issued, loop.alone, loop.products = half.issued, half.alone, 2 * half.products
    loop.tensor, loop.shared = 2 * half.tensor, 2 * half.shared - 2 * half.columns * D * 4
    return loop


def forward(loop: Loop, workload: Workload, rate: float) -> float:
    """Seconds of the moments of both sides: programs in their order, each taken by the next multiprocessor."""
    rows = rows_of_a_program((workload.real, workload.ipc), workload.classes, CHIPS["H100"])
    free = [0.0] * (MULTIPROCESSORS * loop.blocks)
    sides = [(workload.real, split) for split in range(-(-workload.real // rows))]
    sides += [(workload.ipc, split) for split in range(-(-workload.ipc // rows))]
    step = loop.step(rate)["in all"] * loop.blocks
    end = START + loop.blocks * 4 * (D * P + D * D * 5 / 8) / (rate / MULTIPROCESSORS / CLOCK)
    for largest, split in sides:
        met = min(rows, largest - split * rows)
        for _ in range(workload.classes):
            first = free.index(min(free))
            free[first] += met * P / STEP * step + end
    return max(free) / CLOCK


def cycles() -> Iterator[str]:
    workload = WORKLOADS["tiny-ipc50"]
    needed = floor("moment_matching", workload, "forward")
    yield (
        "| kernel | card, copy | registers | blocks | products | bytes | tensor | shared | issue | a step |"
        " forward, predicted | bytes alone | floor / predicted |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    half = hopper_loop()
    of_triton = triton_loop(workload, "Triton, tf32"), triton_loop(workload, "Triton, fp16 (tried)", halves=True)
    for loop in (*of_triton, in_tf32(half), half):
        for card, rates in RATES.items():
            for rate in rates:
                step, seconds = loop.step(rate), forward(loop, workload, rate)
                units = (f"{step[unit]:.0f}" for unit in ("bytes", "tensor", "shared", "issue", "in all"))
                least = needed.bytes / rate
                cells = (
                    *(loop.name, f"{card}, {rate / 1e12:.2f} TB/s", loop.registers, loop.blocks, loop.products),
                    *(*units, f"{1e6 * seconds:.0f} µs", f"{1e6 * least:.0f} µs", f"{least / seconds:.2f}"),
                )
                yield f"| {' | '.join(map(str, cells))} |"


def card() -> Iterator[str]:
    with one_tile():
        yield from _card()


def _card() -> Iterator[str]:
    device, terms = torch.device("cuda"), Terms("features", True, True, True, False)
    clock = clock_of(device)
    yield "| workload | kernel | µs | GB/s | error of sums | error of products |"
    yield "|---|---|--:|--:|--:|--:|"
    for workload in (it for it in WORKLOADS.values() if it.descriptors == (D, P)):
        counts, k = (workload.real, workload.ipc), workload.classes
        sides = [Side(torch.randn(k * n, D, 1, P, device=device).relu_(), None, None, n) for n in counts]
        partials = partials_of(*sides, k, terms)
        rows = tiling.rows_of_a_program(counts, k, chip_of(device))
        splits = (partials.plan.real_splits, partials.plan.splits)
        taken = [it for side, count in zip(sides, splits, strict=True) for it in (*side, rows, count)]
        ours = [torch.empty_like(it) for it in (partials.sums, partials.products, partials.ticket)]
        calls = {
            "Triton": lambda sides=sides, k=k: partials_of(*sides, k, terms),
            "Hopper": lambda taken=taken, ours=ours: torch.ops.ddfast.moments_partials(*taken, *ours),
        }
        calls["Hopper"]()
        x = sides[0].features[:rows, :, 0].double()
        y = x - x[:1]
        exact = y.sum(0), torch.einsum("ncp,nep->ce", y, y).triu()
        graphs = {name: Graph([call]) for name, call in calls.items()}
        times = {name: min(graph.seconds(clock) for _ in range(10)) for name, graph in graphs.items()}
        for name, found in (("Triton", (partials.sums, partials.products)), ("Hopper", ours)):
            got = found[0][0, 0].double(), found[1][0, 0, 0].double().triu()
            errors = (f"{((a - b).norm() / b.norm()).item():.1e}" for a, b in zip(got, exact, strict=True))
            rate = floor("moment_matching", workload, "forward").bytes / times[name] / 1e9
            yield f"| {workload.name} | {name} | {1e6 * times[name]:.1f} | {rate:.0f} | {' | '.join(errors)} |"


PARTS = {"accuracy": accuracy, "cycles": cycles, "card": card}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = []
    for line in PARTS[options.part]():
        print(line, flush=True)
        lines.append(line)
    if options.write:
        path = ROOT / "docs" / "moments-on-hopper.md"
        begin, end = (f"<!-- {options.part}:{word} -->" for word in ("begin", "end"))
        head, rest = path.read_text().split(begin)
        path.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
