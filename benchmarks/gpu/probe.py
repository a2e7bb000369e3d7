"""What the card and its software are: versions, whether what was carried is used, truncation, and the two ceilings."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch

from benchmarks import environment
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.clock import HostClock, clock_of
from benchmarks.gpu import arrival
from benchmarks.gpu.case import Case, Given, NotHere, Record
from ddfast.info import info_lines

CEILINGS = "ceilings.json"
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.limit"
STEPS = (13, 52, 128, 512)  # products that one accumulator adds up


def cases(given: Given) -> Iterator[Case]:
    yield Case("versions", lambda: versions(given))
    yield Case("what was carried", lambda: arrival.report(given.work))
    yield Case("truncation of tensor cores", lambda: truncation(given), limit=60)
    yield Case("ceilings", lambda: ceilings(given), limit=60)
    yield Case("a launch", lambda: launch(given))


def versions(given: Given) -> Record:
    found: Record = {"environment": environment.environment(), "info": list(info_lines())}
    if given.cuda:
        about = torch.cuda.get_device_properties(given.device)
        found["device"] = {
            "name": about.name,
            "capability": [about.major, about.minor],
            "multiprocessors": about.multi_processor_count,
            "memory": about.total_memory,
            "cache": about.L2_cache_size,
        }
        asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        found["nvidia-smi"] = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return found


def truncation(given: Given) -> Record:
    """Mean relative error of long chains of TF32 products of TF32 numbers, which are exact but for their sum."""
    if not given.cuda:
        raise NotHere("a CPU has no tensor cores")
    from benchmarks.gpu.chain import chain  # only here: it needs a Triton that compiles

    found = {}
    for steps in STEPS:
        x = torch.rand(128, steps * 32, device=given.device)
        x = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
        out = torch.empty(128, 128, device=given.device)
        chain[(1,)](x, out, steps, K=32, num_warps=8)
        error = (out.double() - x.double() @ x.double().T) / (x.double() @ x.double().T)
        found[str(steps)] = {"mean": error.mean().item(), "largest": error.abs().max().item()}
    return {"steps of 32": found}


def ceilings(given: Given) -> Record:
    """Kept for the steps that follow, which are measured against them."""
    found = asdict(measure_ceilings(given.device, quick=given.toy))
    (given.work / CEILINGS).write_text(json.dumps(found))
    return found


def known_ceilings(given: Given) -> Ceilings:
    """Those that this command measured, or else measured now."""
    file = given.work / CEILINGS
    return Ceilings(**(json.loads(file.read_text()) if file.exists() else ceilings(given)))


def launch(given: Given) -> Record:
    """Seconds of the smallest call: on the host, and until the device has done it."""
    x = torch.zeros(1, device=given.device)
    host = HostClock().fastest(lambda: x.add_(1), times=100)
    return {"host": host, "device": clock_of(given.device).fastest(lambda: x.add_(1), times=100)}


def triton_hash() -> str | None:
    """Of what Triton makes part of every key of its cache: equal where a cache that was carried can be hit."""
    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        return None
    return hashlib.sha256(triton_key().encode()).hexdigest()[:16]


def python_tag() -> str:
    return f"cp{sys.version_info.major}{sys.version_info.minor}"
