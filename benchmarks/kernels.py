"""Every Triton kernel as it is launched for the standard workloads, compiled for GPUs that need not be here.

    python -m benchmarks.kernels                 prints registers, spills and machine instructions of each
    python -m benchmarks.kernels --json FILE     ... and writes them, with versions and commit
    python -m benchmarks.kernels --compare OLD   ... and prints what differs from such a file
    python -m benchmarks.kernels --write         ... into benchmarks/results/compiled and docs/kernels.md
    python -m benchmarks.kernels --check         ... and exits 1 if these are of other kernels
    python -m benchmarks.kernels --cuda          what nvcc makes of csrc/cuda, by the flags of setup.py

The operators themselves run (calls.py), and what they would launch is compiled instead: so the table shows the
configurations that a GPU would get. Exits 1 if a kernel spills or uses the stack, needs more shared memory
than a block may have, or has a product that did not become a tensor-core instruction.
"""

import argparse
import multiprocessing
import os
import sys
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

from benchmarks import nvcc
from benchmarks.calls import Call, blocks, losses
from benchmarks.compiled import COMPILED, PRODUCTS, Row, differences, line, outdated, page, read_sass, save
from benchmarks.environment import ROOT
from benchmarks.files import load_json
from benchmarks.workloads import WORKLOADS
from ddfast.kernels.tiling import Chip
from ddfast.operators import triton_blocks, triton_complexity, triton_matching
from ddfast.operators.launch import forget

PAGE = ROOT / "docs" / "kernels.md"
CHIPS = {"A100": Chip(80, 108), "H100": Chip(90, 132), "B200": Chip(100, 148)}
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


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
    def _sass(self) -> tuple[dict[str, int], dict[str, int]]:
        return read_sass(self.cubin)

    @property
    def usage(self) -> dict[str, int]:
        """Registers a thread, bytes of stack and of local memory (spills)."""
        return self._sass[0]

    @property
    def instructions(self) -> dict[str, int]:
        """Machine instructions by kind."""
        return self._sass[1]

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds, by registers, shared memory and threads."""
        threads = 32 * self.launch.warps
        registers = 65536 // (-(-self.usage["registers"] // 8) * 8 * threads)
        shared = (SHARED[self.arch] + 1024) // (self.shared + 1024)
        return min(registers, shared, 2048 // threads)

    @property
    def complaints(self) -> Iterator[str]:
        if self.usage["stack"] or self.usage["spills"]:
            yield "spills"
        if self.shared > SHARED[self.arch]:
            yield "too much shared memory"
        if self.launch.arguments.get("COVARIANCE") and not self.instructions.keys() & {*PRODUCTS}:
            yield "no tensor-core instruction"


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
        forget()  # what was planned for another chip
        yield launches
    forget()


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


@dataclass(frozen=True)
class Configuration:
    """A launch, under the first workload that has it."""

    workload: str
    dtype: str
    chip: str
    launch: Launch

    def row(self) -> Row:
        built = self.launch.compile(CHIPS[self.chip].arch)
        return {
            "kernel": self.launch.kernel.__name__,
            "workload": self.workload,
            "dtype": self.dtype,
            "chip": self.chip,
            "programs": self.launch.programs,
            "warps": self.launch.warps,
            **built.usage,
            "shared": built.shared,
            "blocks": built.blocks,
            "sass": built.instructions,
            "complaint": ", ".join(built.complaints),
        }


def configurations(names: list[str], chips: list[str]) -> Iterator[Configuration]:
    for chip in chips:
        seen = set()
        for dtype, dtype_name in DTYPES.items():
            for name, called in cases(names, dtype):
                for launch in launches(called, CHIPS[chip]):
                    if launch.key not in seen:
                        seen.add(launch.key)
                        yield Configuration(name, dtype_name, chip, launch)


def compiled(found: list[Configuration]) -> Iterator[Row]:
    """In order, by as many processes as there are cores; a child has what its parent had recorded."""
    context = multiprocessing.get_context("fork")
    _found[:] = found
    with context.Pool(os.cpu_count()) as pool:
        yield from pool.imap(_row, range(len(found)))


_found: list[Configuration] = []


def _row(number: int) -> Row:
    return _found[number].row()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="... and writes it, compressed if it ends in .gz")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="... and prints what differs from that file")
    parser.add_argument("--write", action="store_true", help="... and writes docs/kernels.md and what it shows")
    parser.add_argument("--check", action="store_true", help="... and fails where docs/kernels.md is of other kernels")
    parser.add_argument("--cuda", action="store_true", help="of csrc/cuda by nvcc, instead of kernels/ by Triton")
    parser.add_argument("--chips", nargs="*", default=list(CHIPS), choices=list(CHIPS))
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    options = parser.parse_args()
    if options.write and (options.chips, options.workloads) != (list(CHIPS), list(WORKLOADS)):
        parser.error("--write writes all chips and workloads")
    rows = []
    made = nvcc.rows() if options.cuda else compiled(list(configurations(options.workloads, options.chips)))
    for row in made:
        print(line(row), flush=True)
        rows.append(row)
    failures = sum(bool(row["complaint"]) for row in rows)
    compiler = nvcc.version() if options.cuda else f"Triton {triton.__version__}"
    print(f"{failures} of {len(rows)} fail, {compiler}")
    version = ".".join(triton.__version__.split(".")[:2])
    kept = COMPILED / ("cuda.json.gz" if options.cuda else f"triton-{version}.json.gz")
    for path in filter(None, (options.json, kept if options.write else None)):
        save(path, compiler, rows)
    if options.compare:
        print(*differences(load_json(options.compare)["rows"], rows), sep="\n")
    shown = PAGE.read_text()
    expected = page(shown, COMPILED, list(CHIPS))
    if options.write:
        PAGE.write_text(expected)
    elif options.check:
        stale = outdated(kept, compiler, rows)
        if not stale and shown != expected:
            stale = f"{PAGE.name} does not show what is committed: run python -m benchmarks.kernels --write"
        print(stale or f"{PAGE.name} is current", file=sys.stderr if stale else sys.stdout)
        failures += bool(stale)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
