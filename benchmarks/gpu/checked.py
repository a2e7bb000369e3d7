"""compute-sanitizer on the smallest cases, and which cuts of the kernels are fastest here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks import tune
from benchmarks.environment import ROOT
from benchmarks.gpu.case import Case, Given, NotHere, Record, Wrong
from benchmarks.gpu.worker import NONE
from benchmarks.workloads import WORKLOADS
from ddfast.kernels.tables import Cut
from ddfast.operators.launch import chip_of

ERROR = 9  # exit code of compute-sanitizer where it found something
CHECKED = {  # tool: words of the cases of the smoke that it looks at
    "racecheck": ["mm small float32 triton", "mm small float32 cuda", "mm-moments small float32 triton"],
    "memcheck": ["mm small float32", "mm-rows small float32", "cx small float32", "pool block small float32"],
}
SHORTLIST = {
    "moments": [
        Cut(*cut) for cut in ((128, 32, 8, 3), (128, 64, 8, 2), (128, 16, 8, 4), (64, 32, 4, 3), (128, 32, 4, 3))
    ],
    "backward": [
        Cut(*cut) for cut in ((128, 64, 8, 3), (128, 128, 8, 2), (128, 32, 8, 4), (64, 64, 4, 3), (128, 64, 4, 3))
    ],
}


def sanitizer_cases(given: Given) -> Iterator[Case]:
    for tool, words in CHECKED.items():
        for word in given.pick(words, words[:1]):
            yield Case(f"{tool}: {word}", partial(sanitized, given, tool, word), limit=120)


def sanitized(given: Given, tool: str, word: str) -> Record:
    """A process of its own under the tool, each tensor an allocation with bounds of its own."""
    worker = [sys.executable, "-m", "benchmarks.gpu.worker", "--once", "smoke", "--cases", word]
    worker += ["--work", str(given.work), *(["--toy"] if given.toy else [])]
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(ERROR), *worker]
    if not given.cuda:
        command = worker  # the same cases without the tool, which has nothing to look at
    variables = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=max(given.left, 5.0)
        )
    except subprocess.TimeoutExpired as over:
        raise NotHere(f"its step had no more than {over.timeout:.0f} s left for it") from None
    said = (done.stdout + done.stderr)[-3000:]
    if done.returncode == NONE:
        raise NotHere("no such case runs here")
    if done.returncode:
        raise Wrong(f"exit code {done.returncode}: {said[-400:]}", said=said)
    return {"said": said[-500:]}


def tuning_cases(given: Given) -> Iterator[Case]:
    for workload in ("tiny-ipc50", "c10-ipc10", "tiny-rows-ipc10"):
        for precision in tune.PRECISIONS:
            yield Case(f"{workload} {precision}", partial(tuned, given, workload, precision), limit=120)


def tuned(given: Given, name: str, precision: str) -> Record:
    """The best of a shortlist, in the form of kernels/tables; the archive takes the rows of all workloads."""
    if not given.cuda:
        raise NotHere("kernels are tuned on the card that they run on")
    rows = list(tune.tune(WORKLOADS[name], precision, given.device, SHORTLIST))
    file = given.kept / "tables" / f"{chip_of(given.device).name}.json"
    file.parent.mkdir(exist_ok=True)
    held = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps(held + rows, indent=1) + "\n")
    return {"rows": rows}
