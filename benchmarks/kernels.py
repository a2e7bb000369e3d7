"""Every Triton kernel as it is launched for the standard workloads, compiled for GPUs that need not be here.

    python -m benchmarks.kernels            prints the table of registers, spills and tensor-core instructions
    python -m benchmarks.kernels --write    ... into docs/kernels.md
    python -m benchmarks.kernels --cuda     what nvcc makes of csrc/cuda, by the flags of setup.py

The operators themselves run (calls.py), and what they would launch is compiled instead: so the table shows the
configurations that a GPU would get. Exits 1 if a kernel spills or uses the stack, needs more shared memory
than a block may have, or has a product that did not become a tensor-core instruction.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from benchmarks.calls import Call, blocks, losses
from benchmarks.environment import ROOT
from benchmarks.workloads import WORKLOADS
from ddfast.kernels.tiling import Chip
from ddfast.operators import triton_blocks, triton_complexity, triton_matching

CHIPS = {"A100": Chip(80, 108), "H100": Chip(90, 132), "B200": Chip(100, 148)}
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FEATURES = {"ff": "float32", "dd": "float64", "f6__half": "float16", "f13__nv_bfloat16": "bfloat16"}  # as mangled
PTXAS = (
    r"entry function '(\S+)' for '(\w+)'[\s\S]*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers"
)
PRODUCTS = r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|DMMA)\b"


@dataclass(frozen=True)
class Launch:
    """What an operator asked for: a kernel with its arguments."""

    kernel: JITFunction
    programs: int
    arguments: dict[str, Any]
    warps: int
    stages: int

    @cached_property
    def source(self) -> ASTSource:
        """As Triton would specialise it: 1 and None are constants, and 16 a known divisor."""
        signature, constants, known = {}, {}, {}
        for number, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            one = not parameter.do_not_specialize and isinstance(value, int) and value == 1
            if parameter.is_constexpr or value is None or one:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            signature[parameter.name] = parameter.annotation_type or mangle_type(value)
            aligned = isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
            if aligned and not parameter.do_not_specialize:
                known[(number,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, known)

    @property
    def key(self) -> tuple[Any, ...]:
        source = self.source
        return self.kernel.__name__, str(source.signature), str(source.constants), str(source.attrs), self.warps

    def compile(self, arch: int) -> "Compiled":
        options = {"num_warps": self.warps, "num_stages": self.stages}
        built = triton.compile(self.source, target=GPUTarget("cuda", arch, 32), options=options)
        return Compiled(self, arch, built.metadata.shared, built.asm["cubin"])


@dataclass(frozen=True)
class Compiled:
    launch: Launch
    arch: int
    shared: int
    cubin: bytes

    @cached_property
    def usage(self) -> dict[str, int]:
        """Registers a thread, bytes of stack and of local memory (spills)."""
        text = self._dump("-res-usage")
        return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}

    @cached_property
    def instructions(self) -> str:
        """The tensor-core instruction of its products; empty where it has none."""
        return " ".join(sorted(set(re.findall(PRODUCTS, self._dump("-sass")))))

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds, by registers, shared memory and threads."""
        threads = 32 * self.launch.warps
        registers = 65536 // (-(-self.usage["REG"] // 8) * 8 * threads)
        shared = (SHARED[self.arch] + 1024) // (self.shared + 1024)
        return min(registers, shared, 2048 // threads)

    @property
    def complaints(self) -> Iterator[str]:
        if self.usage["STACK"] or self.usage["LOCAL"]:
            yield "spills"
        if self.shared > SHARED[self.arch]:
            yield "too much shared memory"
        wants_product = self.launch.arguments.get("COVARIANCE") and self.launch.kernel.__name__ != "sum_kernel"
        if wants_product and not self.instructions:
            yield "no tensor-core instruction"

    def _dump(self, what: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            return subprocess.run([TOOLS / "cuobjdump", what, file.name], capture_output=True, text=True).stdout


@contextmanager
def recorded(chip: Chip) -> Iterator[list[Launch]]:
    """What would be launched on that chip."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        warps, stages = options.pop("num_warps", 4), options.pop("num_stages", 3)
        names = [parameter.name for parameter in kernel.params]
        programs = torch.Size(grid).numel()
        launches.append(Launch(kernel, programs, dict(zip(names, args, strict=False)) | options, warps, stages))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(triton_matching, "chip_of", return_value=chip),
        mock.patch.object(triton_complexity, "chip_of", return_value=chip),
        mock.patch.object(triton_blocks, "chip_of", return_value=chip),
    ):
        yield launches


def launches(calls: Iterable[Call], chip: Chip) -> list[Launch]:
    with recorded(chip) as found:
        for call in calls:
            call()
    return found


def cases(names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, Iterable[Call]]]:
    """Operators by the name of their workload: the losses, then the blocks of networks, which have no float64."""
    for name in names:
        yield name, losses(WORKLOADS[name], dtype)
    if dtype != torch.float64:
        yield from blocks(dtype)


def table(names: list[str]) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each is a failure."""
    yield (
        "| kernel | first workload | dtype | chip | programs | warps | registers | stack | spills | shared memory |"
        " blocks | products |  |",
        False,
    )
    yield "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|---|", False
    for chip_name, chip in CHIPS.items():
        seen = set()
        for dtype, dtype_name in DTYPES.items():
            for name, called in cases(names, dtype):
                for launch in launches(called, chip):
                    if launch.key in seen:
                        continue
                    seen.add(launch.key)
                    built = launch.compile(chip.arch)
                    complaints = ", ".join(built.complaints)
                    cells = (
                        *(launch.kernel.__name__, name, dtype_name, chip_name, launch.programs, launch.warps),
                        *(built.usage[what] for what in ("REG", "STACK", "LOCAL")),
                        *(f"{built.shared / 1024:.0f} KiB", built.blocks, built.instructions, complaints),
                    )
                    yield f"| {' | '.join(map(str, cells))} |", bool(complaints)


def cuda_table() -> Iterator[tuple[str, bool]]:
    """Builds ddfast._C_cuda for every architecture and reads what ptxas says of each kernel."""
    for made in ROOT.glob("build/temp*/csrc/cuda"):  # what was compiled before says nothing again
        shutil.rmtree(made)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"FORCE_CUDA": "1"}, capture_output=True, text=True)
    said = built.stdout + built.stderr
    if built.returncode or "is not built" in said or not re.search(PTXAS, said):
        raise SystemExit(f"ddfast._C_cuda was not built:\n{said}")
    yield "| kernel | architecture | registers | stack | spill stores | spill loads |", False
    yield "|---|---|--:|--:|--:|--:|", False
    for name, arch, stack, stores, loads, registers in re.findall(PTXAS, said):
        (types,) = re.findall(r"match\w*?I(.*?)E", name)
        bad = any(int(count) for count in (stack, stores, loads))
        yield f"| match<{FEATURES[types]}> | {arch} | {registers} | {stack} | {stores} | {loads} |", bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    options = parser.parse_args()
    lines, failures = [], 0
    for line, failed in cuda_table() if options.cuda else table(options.workloads):
        print(line, flush=True)
        lines.append(line)
        failures += failed
    if options.write:
        path = ROOT / "docs" / "kernels.md"
        begin, end = (f"<!-- {'cuda' if options.cuda else 'triton'}:{word} -->" for word in ("begin", "end"))
        head, rest = path.read_text().split(begin)
        path.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}")
    print(f"{failures} of {len(lines) - 2} fail")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
