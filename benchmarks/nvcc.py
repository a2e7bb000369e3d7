"""What nvcc makes of csrc/cuda, by the flags of setup.py."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.compiled import Row
from benchmarks.environment import ROOT

FEATURES = {"ff": "float32", "dd": "float64", "f6__half": "float16", "f13__nv_bfloat16": "bfloat16"}  # as mangled
PTXAS = (
    r"entry function '(\S+)' for '(\w+)'[\s\S]*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers"
)


def rows() -> Iterator[Row]:
    """Builds ddfast._C_cuda for every architecture and reads what ptxas says of each kernel."""
    for made in ROOT.glob("build/temp*/csrc/cuda"):  # what was compiled before says nothing again
        shutil.rmtree(made)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"FORCE_CUDA": "1"}, capture_output=True, text=True)
    said = built.stdout + built.stderr
    if built.returncode or "is not built" in said or not re.search(PTXAS, said):
        raise SystemExit(f"ddfast._C_cuda was not built:\n{said}")
    for name, arch, stack, stores, loads, registers in re.findall(PTXAS, said):
        (types,) = re.findall(r"match\w*?I(.*?)E", name)
        counts = {"registers": int(registers), "stack": int(stack), "spills": int(stores) + int(loads)}
        complaint = "spills" if counts["stack"] or counts["spills"] else ""
        yield {"kernel": f"match<{FEATURES[types]}>", "architecture": arch, **counts, "complaint": complaint}


def version() -> str:
    found = shutil.which("nvcc", path=os.environ["PATH"] + ":/usr/local/cuda/bin") or "nvcc"
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {re.search(r'V([0-9.]+)', said)[1]}"
