"""Everything that needs a GPU, by one command and without a network: `make gpu`, or `make gpu PARTS="tests bench"`.

    PYTHON=python3 make gpu PARTS="..." OUT=folder COMMIT=...     or     python3 -m benchmarks.gpu --parts ... --out ...

Takes the packages that the Python has. Each part has a time limit, a log and an exit code; a part that cannot run here
is reported as not run, with the reason. A word of PARTS chooses every part whose name begins with it. Where there is no
CUDA the same command is a rehearsal: benchmarks run at the quick scale, and their times mean nothing.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.results import Results
from ddfast.operators.backends import implemented

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Part:
    name: str
    command: Sequence[str]
    limit: float = 570.0  # seconds
    refusal: Callable[[], str | None] = lambda: None  # why it cannot run here
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str  # passed, failed, out of time, not run
    reason: str = ""
    command: str = ""
    exit_code: int | None = None
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        return self.status in ("failed", "out of time")


def parts(out: Path) -> Iterator[Part]:
    yield Part("build", (sys.executable, "setup.py", "build_ext", "--inplace"), refusal=_nothing_to_build)
    yield Part("kernels", (sys.executable, "-m", "benchmarks.kernels"), refusal=lambda: _missing("triton"))
    yield Part("tests", (*PYTEST, "tests", "-m", "not full"), refusal=lambda: _missing("pytest", "hypothesis"))
    for tool in ("memcheck", "racecheck", "initcheck"):
        kernel_tests = (*PYTEST, "tests", "-m", "not full", "-k", "triton-cuda or cuda-cuda")
        yield Part(
            f"sanitizer-{tool}",
            ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *kernel_tests),
            refusal=_nothing_to_sanitize,
            variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor an allocation with bounds of its own
        )
    yield Part("tune", (sys.executable, "-m", "benchmarks.tune"), refusal=_no_device)
    for stem in ("moments", "matching", "complexity", "augment", "iteration"):
        results = f"--benchmark-json={out / f'operators-{stem}.json'}"
        shown = "--benchmark-columns=median,iqr,rounds"
        scale = () if CUDA else ("--scale", "quick")
        yield Part(
            f"bench-{stem}",
            (*PYTEST, f"benchmarks/bench_{stem}.py", results, shown, *scale),
            refusal=lambda: _missing("pytest", "pytest_benchmark", "hypothesis"),
        )
    quick = () if CUDA else ("--quick",)
    blocks = (sys.executable, "-m", "benchmarks.blocks", "--out", str(out / "blocks.json"), *quick)
    yield Part("bench-blocks", blocks, refusal=lambda: _missing("hypothesis"))
    processes = str(torch.cuda.device_count())
    shared = (sys.executable, "-m", "benchmarks.ranks", "--processes", processes, "--out", str(out))
    yield Part("bench-ranks", shared, refusal=_one_device)
    yield Part("profile-memory", (sys.executable, "-m", "benchmarks.profile_memory", "--out", str(out)))


def _missing(*modules: str) -> str | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def _nothing_to_build() -> str | None:
    return None if (environment.ROOT / "setup.py").exists() else "there is no native code to build"


def _no_device() -> str | None:
    return None if CUDA else "no CUDA device"


def _one_device() -> str | None:
    return None if torch.cuda.device_count() > 1 else "fewer than two CUDA devices"


def _nothing_to_sanitize() -> str | None:
    if not CUDA:
        return _no_device()
    if shutil.which("compute-sanitizer") is None:
        return "compute-sanitizer not found"
    return None if implemented["triton"] or implemented["cuda"] else "there are no kernels to check"


def run(part: Part, out: Path) -> Outcome:
    """Its output is in `<name>.log`; what it leaves behind when its time is over is killed with it."""
    command = " ".join(map(str, part.command))
    reason = part.refusal()
    if reason is not None:
        return Outcome(part.name, "not run", reason, command)
    paths = os.pathsep.join(filter(None, (str(environment.ROOT), os.environ.get("PYTHONPATH"))))
    variables = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"} | part.variables
    start = time.monotonic()
    with (out / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            part.command,
            cwd=environment.ROOT,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(part.limit)
            status, reason = ("passed", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, status, reason = process.wait(), "out of time", f"killed after {part.limit:.0f} s"
    return Outcome(part.name, status, reason, command, code, time.monotonic() - start)


def run_all(chosen: Sequence[Part], out: Path) -> list[Outcome]:
    """Writes gpu.json and summary.md after every part, so that what is done is there whatever comes."""
    here, outcomes = environment.write(out), []
    for part in chosen:
        print(f"{part.name} ...", end=" ", flush=True)
        outcomes.append(run(part, out))
        print(outcomes[-1].status, outcomes[-1].reason, f"{outcomes[-1].seconds:.0f} s", flush=True)
        record = {"environment": here, "parts": [asdict(outcome) for outcome in outcomes]}
        (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "summary.md").write_text("\n".join(summary(here, outcomes, Results(out))) + "\n")
    return outcomes


def summary(here: dict[str, Any], outcomes: list[Outcome], results: Results) -> Iterator[str]:
    device = here["gpu"] or f"no GPU ({here['cpu']}): a rehearsal, whose times mean nothing"
    yield f"# {device}, commit {here['commit']}{' with changes' if here['dirty'] else ''}, {here['time']}"
    yield ""
    yield ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    yield ""
    yield "| part | | | seconds |"
    yield "|---|---|---|--:|"
    for outcome in outcomes:
        yield f"| {outcome.name} | {outcome.status} | {outcome.reason} | {outcome.seconds:.0f} |"
    fastest = [(key, results.ours(key)) for key in results.groups if key[2].startswith("both")]
    if fastest:
        yield ""
        yield "| operator | workload | direction | backend | ms | × eager | of the floor |"
        yield "|---|---|---|---|--:|--:|--:|"
    for key, ours in fastest:
        if ours is not None:
            eager = ours["times_as_fast_as"].get("eager", {}).get("value", float("nan"))
            time_ms, share = 1e3 * ours["median_s"]["value"], 100 * ours["fraction_of_floor"]
            yield f"| {' | '.join(key)} | {ours['contender']} | {time_ms:.3f} | {eager:.2f} | {share:.0f} % |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=[], help="names, or beginnings of names; all by default")
    parser.add_argument("--out", type=Path, help="default: the machine's folder of results, or runs/gpu-rehearsal")
    options = parser.parse_args()
    out = (options.out or (environment.results_folder() if CUDA else environment.ROOT / "runs/gpu-rehearsal")).resolve()
    every = list(parts(out))
    unknown = [word for word in options.parts if not any(part.name.startswith(word) for part in every)]
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(part.name for part in every)}")
    chosen = [part for part in every if not options.parts or part.name.startswith(tuple(options.parts))]
    outcomes = run_all(chosen, out)
    print(f"{out / 'summary.md'}")
    return int(any(outcome.bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
