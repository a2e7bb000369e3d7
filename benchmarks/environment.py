"""Where and from what a result came: machine, versions, commit; and the folder that results of it belong into.

`python -m benchmarks.environment` makes that folder with its environment.json and prints its name.
"""

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ddfast

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def environment() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "machine": machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "versions": versions(),
        "commit": commit(),
        "dirty": dirty(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str | None]:
    installed = {name: _version(name) for name in ("triton", "numpy", "pytest-benchmark")}
    here = {"ddfast": ddfast.__version__, "python": platform.python_version(), "torch": torch.__version__}
    return here | installed | {"cuda": torch.version.cuda}


def machine() -> str:
    """A folder's name: the GPU, or the CPU and its cores."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_cpu()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """COMMIT where there is no git; "unknown" where nobody says."""
    return os.environ.get("COMMIT") or _git("rev-parse", "--short", "HEAD") or "unknown"


def dirty() -> bool | None:
    """Whether the tree differs from the commit; None where there is no git to tell."""
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


def results_folder() -> Path:
    return RESULTS / machine() / f"{datetime.now(UTC).date().isoformat()}-{commit()}"


def write(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    here = environment()
    (folder / "environment.json").write_text(json.dumps(here, indent=1) + "\n")
    return here


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    write(results_folder())
    print(results_folder())
