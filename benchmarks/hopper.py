"""A moments kernel of its own for Hopper, on paper: how accurate half-precision splits are, and what a step costs.

    python -m benchmarks.hopper accuracy    errors of Sigma, Delta and the gradient, tensor cores that truncate
    python -m benchmarks.hopper cycles      compiles the kernels and counts what a multiprocessor does in a step
    ... --write                             puts the table into docs/moments-on-hopper.md

The accuracy is simulated in NumPy: a product of k columns is exact, and added to a float32 sum toward zero. The cycles
are counted in the machine code of the loop, with the rates of the data sheets: nothing here is measured.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.calls import losses
from benchmarks.environment import ROOT
from benchmarks.floors import floor
from benchmarks.kernels import CHIPS, TOOLS, launches
from benchmarks.workloads import WORKLOADS, Workload
from ddfast.kernels.tiling import rows_of_a_program

D, P, STEP = 128, 16, 64  # descriptors, positions; columns of a step of the Hopper kernel
ROW = 4 * D * P  # bytes
Array = np.ndarray


# Accuracy


@dataclass(frozen=True)
class Split:
    """Halves of a number: how they are rounded, and the columns of one tensor-core instruction."""

    name: str
    rounded: Callable[[Array], Array]
    columns: int
    scaled: bool
    flushed: int | None = STEP  # columns that one accumulator of the tensor cores sees, None: all of a program


def to_tf32(x: Array) -> Array:
    return ((x.view(np.int32) + 0x1000) & -0x2000).view(np.float32)


def to_half(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float32)


SPLITS = (
    Split("tf32, not flushed", to_tf32, 8, scaled=False, flushed=None),
    Split("tf32", to_tf32, 8, scaled=False),
    Split("fp16, not flushed", to_half, 16, scaled=True, flushed=None),
    Split("fp16", to_half, 16, scaled=True),
)


def toward_zero(x: Array) -> Array:
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def scales(y: Array, scaled: bool) -> Iterator[float]:
    """The scale of each step of `y` (D, columns), by the rule of the kernel."""
    scale = 0.0
    for start in range(0, y.shape[1], STEP):
        largest = float(np.abs(y[:, start : start + STEP]).max()) if scaled else 0.0
        if scaled and largest and (not scale or largest * scale >= 2.0**15):
            scale = 2.0 ** (9 - np.floor(np.log2(largest)))
        yield scale or 1.0


def program(y: Array, split: Split) -> Array:
    """The products (D, D) of one program's deviations (D, columns)."""
    total, part = np.zeros((D, D), np.float32), np.zeros((D, D), np.float32)
    for start, scale in zip(range(0, y.shape[1], STEP), scales(y, split.scaled), strict=True):
        scaled = y[:, start : start + STEP] * np.float32(scale)
        hi = split.rounded(scaled)
        lo = split.rounded(scaled - hi)
        weight = 0.5 / scale**2 if split.flushed else 1.0
        unit = 1.0 if split.flushed else 0.5 / scale**2
        for right in (hi, 2 * lo):
            for k in range(0, hi.shape[1], split.columns):
                here = slice(k, k + split.columns)
                part = toward_zero(part + unit * (hi[:, here].astype(float) @ right[:, here].astype(float).T))
        if split.flushed:
            total, part = (total + part * np.float32(weight)).astype(np.float32), np.zeros_like(part)
    total = total + part
    return total + total.T


def sigma(x: Array, split: Split | None, rows: int) -> Array:
    """Sigma of one class (N, D, P), exactly or by programs of so many rows each; sums are taken as exact."""
    y = x - x[:1] if split else x.astype(float) - x.astype(float).mean(0)
    columns = y.transpose(1, 0, 2).reshape(D, -1)
    if split is None:
        return columns @ columns.T / len(x)
    ends = [*range(0, len(x), rows), len(x)]
    products = sum(program(columns[:, P * a : P * b], split).astype(float) for a, b in pairwise(ends))
    sums = y.astype(float).sum(0)
    return (products - sums @ sums.T / len(x)) / len(x)


def features(kind: str, rows: int, shift: float, rng: np.random.Generator, centre: Array) -> Array:
    x = rng.standard_normal((rows, D, P)) + centre + shift
    if kind.startswith("mean/spread"):
        return (x + float(kind.split()[1])).astype(np.float32)
    x = np.maximum(x, 0)
    if kind == "t, 2 degrees, ReLU":
        x = np.maximum(rng.standard_t(2, x.shape) + centre + shift, 0)
    if "x 100" in kind:
        x[0 if "pivot" in kind else rows // 2] *= 100
    return x.astype(np.float32)


KINDS = (
    *("mean/spread 1", "mean/spread 10", "mean/spread 1000"),
    *("ReLU", "t, 2 degrees, ReLU", "ReLU, a row x 100", "ReLU, the pivot x 100"),
)
CASES = ((256, 50, 256, KINDS), (1024, 1000, 256, ("ReLU",)))


def accuracy() -> Iterator[str]:
    yield "| real, synthetic rows | features | splits | Sigma | Delta | gradient |"
    yield "|---|---|---|--:|--:|--:|"
    for real, ipc, rows, kinds in CASES:
        for kind in kinds:
            rng = np.random.default_rng(0)
            centre = 0.5 + 0.5 * rng.standard_normal((D, P))
            r, s = features(kind, real, 0, rng, centre), features(kind, ipc, 0.1, rng, centre)
            of_r, of_s = sigma(r, None, 0), sigma(s, None, 0)
            y = (s - s.astype(float).mean(0)).transpose(1, 0, 2).reshape(D, -1)
            for split in SPLITS:
                got_r, got_s = sigma(r, split, rows), sigma(s, split, rows)
                gap, exact = got_s - got_r, of_s - of_r
                pairs = ((got_r, of_r), (gap, exact), (gap @ y, exact @ y))
                errors = (f"{np.linalg.norm(a - b) / np.linalg.norm(b):.1e}" for a, b in pairs)
                yield f"| {real}, {ipc} | {kind} | {split.name} | {' | '.join(errors)} |"


# Cycles

CLOCK, MULTIPROCESSORS, SCHEDULERS = 1.755e9, 132, 4
RATES = {
    "H100": (3.35e12, 3.0e12),
    "H200": (4.8e12, 4.3e12),
}  # bytes a second: data sheet, a copy as others measured it
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


def triton_loop(workload: Workload) -> Loop:
    found = launches(losses(workload, torch.float32), CHIPS["H100"])
    launch = next(it for it in found if it.kernel.__name__ == "moments_kernel")
    built = launch.compile(90)
    columns = launch.arguments["ROWS"] * launch.arguments["BLOCK_P"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.cubin)
        file.flush()
        sass = disassembled(Path(file.name))
    return count(Loop("Triton", columns, launch.warps, built.usage["REG"], built.blocks), sass)


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
    for loop in (triton_loop(workload), in_tf32(half), half):
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("accuracy", "cycles"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = []
    for line in accuracy() if options.part == "accuracy" else cycles():
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
