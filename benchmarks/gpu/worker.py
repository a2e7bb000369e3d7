"""The process that a step's cases run in. It stays for the steps that follow, until a case breaks it.

A line of JSON on its standard input names a step; lines of JSON on its standard output say which case begins and what
it found. All that a case prints goes into the step's log.

    python -m benchmarks.gpu.worker --once STEP [--cases WORD ...]      one step by itself, or those of its cases

"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.gpu.case import Case, Given, NotHere, Record, Wrong, is_wrong

Say = Callable[[Record], None]
NONE = 5  # exit code where no case was wanted
COMPILED: list[str] = []
PREPARING = "(preparing a case)"
TRACE = 1200  # characters of a traceback that are kept


def cases_of(asked: Record, given: Given) -> Iterator[Case]:
    from benchmarks.gpu.steps import step_of  # only here: it imports all that the steps need

    return step_of(asked["step"]).load()(given)


def carry_out(cases: Iterator[Case], given: Given, done: Sequence[str], say: Say) -> bool:
    """Runs all cases but those that are `done`; whether the process is still fit for another step."""
    passed_over, untried = set(done), []
    while True:
        say({"begin": PREPARING})
        try:
            case = next(cases, None)
        except Exception as error:
            say({"end": PREPARING, "record": _failed(error)})
            return fit(given.device)
        if case is None:
            break
        if case.name in passed_over:
            continue
        if given.left <= 0:
            untried.append(case.name)
            continue
        say({"begin": case.name, "limit": case.limit})
        record = run(case)
        say({"end": case.name, "record": record})
        if is_wrong(record) and not fit(given.device):
            return False
    if untried:
        say({"untried": untried})
    return True


def run(case: Case) -> Record:
    """What a case found, its seconds, and the kernels that Triton compiled for it and had in no cache."""
    begun = time.perf_counter()
    COMPILED.clear()
    try:
        record: Record = {"status": "passed", **(case.run() or {})}
    except NotHere as refusal:
        record = {"status": "not run", "reason": str(refusal)}
    except Wrong as wrong:
        record = {"status": "failed", "error": str(wrong), **wrong.found}
    except Exception as error:
        record = _failed(error)
    if COMPILED:
        record["compiled"] = list(COMPILED)
    return {**record, "seconds": round(time.perf_counter() - begun, 4)}


def listen_to_compiler() -> None:
    """From now on COMPILED has the names of kernels that no cache had."""
    if not torch.cuda.is_available():
        return
    import triton

    def compiled(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            COMPILED.append(str(getattr(src, "name", src)))

    triton.knobs.compilation.listener = compiled


def _failed(error: Exception) -> Record:
    trace = "".join(traceback.format_exception(error))
    print(trace, flush=True)
    return {"status": "failed", "error": f"{type(error).__name__}: {error}"[:TRACE], "trace": trace[-TRACE:]}


def fit(device: torch.device) -> bool:
    """Whether CUDA still answers after something went wrong: some errors stay with a process for good."""
    if device.type != "cuda":
        return True
    gc.collect()
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        return bool((torch.ones(2, device=device) * 2).sum().item() == 4)
    except RuntimeError:
        return False


def given_of(asked: Record) -> Given:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = asked["until"] - time.monotonic()  # a clock of the machine's: a worker's start is a part of the step
    return Given(device, asked["toy"], Path(asked["work"]), seconds, tuple(asked.get("again", ())))


def serve(requests: TextIO, say: Say) -> None:
    for line in requests:
        asked = json.loads(line)
        log_into(Path(asked["work"]) / "kept" / "logs", asked["step"])
        given = given_of(asked)
        try:
            cases = cases_of(asked, given)
        except Exception as error:
            say({"end": PREPARING, "record": _failed(error)})
            say({"finished": True, "fit": fit(given.device)})
            continue
        well = carry_out(cases, given, asked["done"], say)
        sys.stdout.flush()
        say({"finished": well, "fit": well})
        if not well:
            return


def log_into(folder: Path, name: str) -> None:
    """From now on all that is printed here goes into the log of a step."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    file = os.open(
        folder / f"{name.replace(' ', '-').replace(':', '-')}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
    )
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once")
    parser.add_argument("--cases", nargs="*", help="parts of the names of the cases that are wanted")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    if options.once is not None:
        sys.exit(once(options))
    channel = os.fdopen(os.dup(1), "w", buffering=1)  # what a case prints must not get in between

    def say(message: Record) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    listen_to_compiler()
    serve(sys.stdin, say)


def once(options: argparse.Namespace) -> int:
    asked = {"step": options.once, "toy": options.toy, "work": options.work}
    asked["until"] = time.monotonic() + options.seconds
    found = []
    for case in cases_of(asked, given_of(asked)):
        if options.cases is None or any(word in case.name for word in options.cases):
            found.append(run(case))
            print(json.dumps({"case": case.name, **found[-1]}), flush=True)
    return int(any(map(is_wrong, found))) if found else NONE


if __name__ == "__main__":
    main()
