"""The kernels of moment matching as an H100 would get them: accesses, spills, and sums that stay out of the products.

Compiling needs a process without Triton's interpreter: `python -m tests.test_matching_compiled` prints what is asked.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
WIDE = {"moments_kernel": 16, "merge_kernel": 8, "backward_kernel": 32}  # accesses of 16 bytes, at least
CASES = (("c10-ipc10", "float32"), ("tiny-rows-ipc10", "float32"), ("c10-ipc10", "bfloat16"))


def described(launch):
    import triton
    from triton.backends.compiler import GPUTarget

    from benchmarks.compiled import MEMORY, PRODUCTS, read_sass

    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    built = triton.compile(launch.source, target=GPUTarget("cuda", 90, 32), options=options)
    usage, counts = read_sass(built.asm["cubin"])
    ttgir = built.asm["ttgir"]
    carried = {name for loop in re.findall(r"iter_args\((.*?)\) ->", ttgir) for name in re.findall(r"(%\w+) =", loop)}
    sums = re.findall(r"(?:warp_group_dot|tt\.dot) %[\w#]+, %[\w#]+, (%\w+)", ttgir)
    return {
        "kernel": launch.kernel.__name__,
        "registers": usage["registers"],
        "spilled bytes": usage["stack"] + usage["spills"],
        "instructions": counts["all"],
        "16-byte accesses": sum(counts.get(f"{name}.128", 0) for name in MEMORY),
        "4-byte copies": counts.get("LDGSTS.32", 0),
        "products": sum(counts.get(name, 0) for name in PRODUCTS),
        "products into the sum of all": sum(name in carried for name in sums),
    }


def main():
    from benchmarks.calls import losses
    from benchmarks.kernels import CHIPS, launches
    from benchmarks.workloads import WORKLOADS

    for workload, dtype in CASES:
        for launch in launches(losses(WORKLOADS[workload], getattr(torch, dtype)), CHIPS["H100"]):
            name, arguments = launch.kernel.__name__, launch.arguments
            seconds = name == "moments_kernel" and arguments["ticket"] is None  # of class_moments
            if name in WIDE and not seconds and arguments.get("REAL") != "none":
                print(json.dumps({"workload": workload, "dtype": dtype, **described(launch)}), flush=True)


@pytest.fixture(scope="module")
def compiled():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_matching_compiled"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kernel["kernel"] for kernel in kernels] == len(CASES) * list(WIDE)
    return kernels


def test_kernels_access_16_bytes_at_a_time_and_spill_nothing(compiled):
    for kernel in compiled:
        half = 2 if kernel["dtype"] == "bfloat16" else 1  # the same features in half the accesses
        assert kernel["spilled bytes"] == 0, kernel
        assert kernel["16-byte accesses"] >= WIDE[kernel["kernel"]] // half, kernel
        assert kernel["4-byte copies"] == 0, kernel


def test_no_product_goes_into_the_sum_of_all_steps(compiled):
    """Where a compiler joins the two, tensor cores truncate that sum: see test_truncation.py."""
    for kernel in compiled:
        assert kernel["products"], kernel
        assert kernel["products into the sum of all"] == 0, kernel


if __name__ == "__main__":
    main()
