"""A command from its first step to its last: shares out the time, and survives whatever a case does.

A step gets what it wishes for as long as all after it still get their least; where more time is left than all wish for,
each gets its share of it. What does not fit is shortened, or not begun, and the record says why. Cases run in worker
processes. One that crashes, hangs or leaves CUDA broken takes its process with it; the next case gets a new one.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.gpu.archive import RECORDS, SUMMARY, Archive, records, summary
from benchmarks.gpu.case import Record, Step
from benchmarks.gpu.worker import PREPARING

RESERVE = 4.0  # seconds at the end for the last archive
GRACE = 2.0  # seconds of the reserve in which a last case may still end
START = 90.0  # seconds that a worker may take to start and to prepare a case
UNHURRIED = 300.0  # seconds of each step of a rehearsal, which shares nothing out
PATIENCE = 5  # times the limits of cases in a rehearsal, whose machine may have other work
RESTARTS = 12  # of a worker in one step: where every case takes its process with it, the first ones tell enough


class Worker:
    """A process of worker.py, and what it says."""

    def __init__(self) -> None:
        paths = os.pathsep.join(filter(None, (str(environment.ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker"],
            cwd=environment.ROOT,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said: queue.Queue[Record | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):
                self.said.put(json.loads(line))
        self.said.put(None)

    def ask(self, asked: Record) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()

    def hear(self, seconds: float) -> Record | None:
        """Its next word; None when it is gone. Raises `queue.Empty` when it says nothing for so long."""
        return self.said.get(timeout=max(seconds, 0.01))

    def end(self) -> str:
        """Ends it with all that it started, and says how it ended where it did so by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)
        code = self.process.poll()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a kernel that never ends may keep it
            self.process.wait(5)
        if code is None:
            return "being killed"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@dataclass
class Session:
    """command: "first" or "second". seconds: for all of it. out: where the archive goes. work: a folder of its own."""

    command: str
    steps: Sequence[Step]
    seconds: float
    out: Path
    work: Path
    toy: bool = False
    again: Sequence[str] = ()
    begun: float = field(default_factory=time.monotonic)
    workers: list[Worker] = field(default_factory=list)
    idle: list[Worker] = field(default_factory=list)
    over: bool = False

    def __post_init__(self) -> None:
        self.deadline = self.begun + self.seconds - RESERVE
        self.archive = Archive(self.work / "kept", self.out / f"{self.command}.tar.xz")
        self.lock = threading.Lock()
        self.cuda = torch.cuda.is_available()

    def __call__(self) -> list[Record]:
        try:
            self._run()
        finally:
            self.over = True
            for worker in self.workers:
                worker.end()
        self._save()
        return records(self.archive.folder)

    def _run(self) -> None:
        (self.archive.folder / RECORDS).unlink(missing_ok=True)
        here = environment.environment()
        self._record(
            "session", command=self.command, toy=self.toy, planned=self.seconds, gpu=here["gpu"], environment=here
        )
        behind: dict[str, threading.Thread] = {}
        for number, step in enumerate(self.steps):
            for name in step.after:
                if name in behind:
                    behind[name].join(max(self.deadline - time.monotonic() - step.least, 0))
            reason, given = self._refusal(step), self.share(number)
            if reason is None and given is None:
                reason = f"it needs {step.least:.0f} s, and {self.deadline - time.monotonic():.0f} s are left"
            if reason is not None:
                self._record("step", step=step.name, status="not run", reason=reason, seconds=0.0)
                print(f"{step.name}: not run, {reason}", flush=True)
            elif step.beside:
                thread = threading.Thread(target=self._carry_out, args=(step, given), daemon=True)
                thread.start()
                behind[step.name] = thread
            else:
                self._carry_out(step, given)
        for thread in behind.values():
            thread.join(max(self.deadline + GRACE - time.monotonic(), 0))

    def share(self, number: int) -> float | None:
        """The seconds of a step that is about to begin; None where it is not worth to begin it."""
        step, later = self.steps[number], [it for it in self.steps[number + 1 :] if self._refusal(it) is None]
        left = self.deadline - time.monotonic()
        if self.toy:
            return min(left, UNHURRIED) if left >= self._least(step) else None
        wishes = step.wish + sum(it.wish for it in later)
        if left >= wishes:
            return step.wish * left / wishes
        given = min(step.wish, left - sum(self._least(it) for it in later if not it.extra))
        if given >= self._least(step):
            return given
        return self._least(step) if left >= self._least(step) else None

    def _least(self, step: Step) -> float:
        return min(step.least, 2.0) if self.toy else step.least

    def _refusal(self, step: Step) -> str | None:
        for need in step.needs:
            if need == "cuda":
                if not self.cuda:
                    return "no CUDA device"
            elif shutil.which(need) is None:
                return f"{need} is not here"
        return None

    def _carry_out(self, step: Step, given: float) -> None:
        begun, done, restarts = time.monotonic(), [], 0
        untried: list[str] = []
        reason = ""
        while True:
            worker = self._worker()
            asked = {"step": step.name, "toy": self.toy, "work": str(self.work), "until": begun + given}
            worker.ask(asked | {"done": done, "again": list(self.again)})
            ended = self._follow(worker, step, begun + given, done, untried)
            if ended == "finished":
                with self.lock:
                    self.idle.append(worker)
                break
            worker.end()
            restarts += 1
            if ended == "over":
                reason = "its time was over"
                break
            if ended == "unprepared" or restarts > RESTARTS:
                reason = "its cases could not be prepared" if ended == "unprepared" else "it broke too many processes"
                break
            if self.over or begun + given - time.monotonic() < 1:
                reason = "its time was over"
                break
        seconds = time.monotonic() - begun
        about = {"untried": untried} if untried else {}
        if untried and not reason:
            reason = f"{len(untried)} cases found no time"
        self._record(
            "step",
            step=step.name,
            status="run",
            seconds=round(seconds, 2),
            given=round(given, 1),
            reason=reason,
            **about,
        )
        print(f"{step.name}: {len(done)} cases in {seconds:.0f} of {given:.0f} s{reason and ', '}{reason}", flush=True)
        self._save()

    def _follow(self, worker: Worker, step: Step, until: float, done: list[str], untried: list[str]) -> str:
        """Listens to a worker until it is through, and says how it ended; `done` and `untried` get names of cases."""
        case, case_until, begun = PREPARING, time.monotonic() + START, time.monotonic()
        until = max(min(until + step.grace, self.deadline + GRACE), time.monotonic() + 1)
        while True:
            try:
                said = worker.hear(min(until, case_until) - time.monotonic())
            except queue.Empty:
                over = time.monotonic() >= until
                status = {"status": "hung", "error": f"killed after {time.monotonic() - begun:.0f} s"}
                if over:
                    status = {"status": "not run", "reason": "the time of its step was over while it ran"}
                self._case(step, case, status, done)
                return "over" if over else ("unprepared" if case == PREPARING else "hung")
            if said is None:
                self._case(step, case, {"status": "died", "error": f"its process ended by {worker.end()}"}, done)
                return "unprepared" if case == PREPARING else "died"
            if "begin" in said:
                case, begun = said["begin"], time.monotonic()
                limit = START if case == PREPARING else said.get("limit") or step.limit
                case_until = begun + (PATIENCE if self.toy else 1) * limit
            elif "untried" in said:
                untried += said["untried"]
            elif "finished" in said:
                return "finished" if said["fit"] else "unfit"
            elif said["end"] == PREPARING:
                self._case(step, PREPARING, said["record"], done)
            else:
                self._case(step, said["end"], said["record"], done)
                case, case_until = PREPARING, time.monotonic() + START

    def _case(self, step: Step, name: str, found: Record, done: list[str]) -> None:
        self._record("case", step=step.name, case=name, **found)
        done.append(name)

    def _worker(self) -> Worker:
        with self.lock:
            while self.idle:
                worker = self.idle.pop()
                if worker.process.poll() is None:
                    return worker
            self.workers.append(Worker())
            return self.workers[-1]

    def _record(self, kind: str, **found: Any) -> None:
        at = round(time.monotonic() - self.begun, 2)
        self.archive.append({"kind": kind, "at": at, **found})

    def _save(self) -> None:
        try:
            text = "\n".join(summary(records(self.archive.folder))) + "\n"
            (self.archive.folder / SUMMARY).write_text(text)
            (self.out / f"{self.command}.md").write_text(text)
            self.archive.write()
        except Exception as error:  # a full disk, say: the records are on it already, and the steps go on
            print(f"the archive was not written: {error}", flush=True)
