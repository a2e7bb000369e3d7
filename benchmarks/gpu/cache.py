"""Fills Triton's cache through the real launch path, with a driver that launches nothing, and checks that it is hit.

    python -m benchmarks.gpu.cache      into $TRITON_CACHE_DIR

A key of the cache is made of Triton's own files, the kernel's source, its specialisation and options: it needs neither
a GPU nor a path. So the cache must be filled by the Triton of the GPU machine, after the last change of a kernel.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import triton

from benchmarks import calls
from benchmarks.fake_driver import H100, fake_gpu
from benchmarks.workloads import WORKLOADS
from ddfast.kernels.tiling import Chip
from tests import oracle

CHIPS = {"H100": H100}  # and the H200, whose processor is the same
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SMALL = {"classes": 2, "real": 32}  # what a kernel is specialised by does not depend on how many there are

Work = Callable[[], Any]


def work() -> Iterator[tuple[str, Work]]:
    """All that the commands launch, by name: what runs take by default comes first."""
    for dtype in DTYPES[:2]:
        for name, workload in WORKLOADS.items():
            for number, call in enumerate(calls.losses(workload, dtype)):
                yield f"{name} {dtype} {number}", call
        for name, block in calls.blocks(dtype):
            for number, call in enumerate(block):
                yield f"{name} {dtype} {number}", call
    for losses in ("all", "idm"):
        for precision in ("float32", "bf16"):
            yield f"iteration {losses} {precision}", partial(iterate, losses, precision)
    for dtype in DTYPES:
        for loss in (*oracle.MATCHING, *oracle.MOMENTS, *oracle.COMPLEXITY):
            yield f"{loss.name} small {dtype}", partial(small_loss, loss, dtype)
        for name, call in small_blocks(dtype):
            yield name, call


def iterate(losses: str, precision: str) -> None:
    from benchmarks.iterations import Setting, engine

    setting = Setting(losses=losses, **SMALL)
    config = setting.config(precision).replace(queue_steps=1)
    distiller, state = engine(config, setting, torch.device("cpu"))
    distiller.iterate(state)


def small_loss(loss: oracle.Loss, dtype: torch.dtype) -> None:
    for batch in (oracle.batch(loss.row), oracle.uniform(loss.row, 3, 7, 4), oracle.uniform(loss.row, 4, 9, 5)):
        held = batch.to(dtype)
        oracle.differentiate(loss.of(held, "triton"), held.syn)


def small_blocks(dtype: torch.dtype) -> Iterator[tuple[str, Work]]:
    from benchmarks.gpu.smoke import LAYOUTS, blocks

    for block in blocks.BLOCKS:
        for layout, memory_format in LAYOUTS.items():
            inputs = [it.to(dtype) for it in block.inputs(layout=memory_format)]
            run = partial(block.differentiate, partial(block, backend="triton"), inputs)
            yield f"{block.name} block small{layout} {dtype}", run


def launched(chip: Chip, only: Sequence[str] = (), until: float = float("inf")) -> dict[str, Any]:
    """Does all of `work`, or what `only` names a part of, on the fake `chip`.

    Returns how many kernels the cache had, which it had not, and what could not be done.
    """
    hits: Counter[bool] = Counter()
    missed: list[str] = []
    failed: dict[str, str] = {}

    def compiled(*, src: Any, cache_hit: bool, **_: Any) -> None:
        hits[cache_hit] += 1
        if not cache_hit:
            missed.append(src.name if hasattr(src, "name") else str(src))

    triton.knobs.compilation.listener = compiled
    left_over = 0
    with fake_gpu(chip, launchers=True):
        for name, call in work():
            if only and not any(word in name for word in only):
                continue
            if time.monotonic() > until:
                left_over += 1
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    call()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:200]
            sys.stdout.flush()
    return {"hits": hits[True], "misses": hits[False], "missed": missed, "failed": failed, "left_over": left_over}


def fill(only: Sequence[str], minutes: float) -> dict[str, Any]:
    until = time.monotonic() + 60 * minutes
    return {name: launched(chip, only, until) for name, chip in CHIPS.items()}


def check(only: Sequence[str] = ()) -> dict[str, Any]:
    """In another process and another folder: every kernel of the same work is there, and both extensions load."""
    from ddfast.operators import native
    from ddfast.operators.backends import absent

    native_half = "loads" if native.module is not None else absent["cpp"]
    cuda_half = "loads" if native.load_cuda() else absent["cuda"]
    return {
        "native": native_half,
        "cuda": cuda_half,
        "chips": {name: launched(chip, only) for name, chip in CHIPS.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which the rest is left to the machine")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of what is done")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(fill(options.only, options.minutes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
