"""The one file of results, whole at any moment: what is known so far is in it, whatever happens next."""

import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Record, is_wrong

LARGEST = 12 * 2**20  # bytes
RECORDS, SUMMARY, LEFT_OUT = "records.jsonl", "summary.md", "left-out.json"


class Archive:
    """records.jsonl and whatever else lies below `folder`, packed into `file` whenever `write` is called."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder, self.file = folder, file
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Record) -> None:
        """On the disk when it returns."""
        with self._lock, (self.folder / RECORDS).open("a") as lines:
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def write(self) -> None:
        """Where it would become too large, the largest files stay out, and left-out.json names them."""
        with self._lock:
            files = sorted(self._files(), key=lambda path: path.stat().st_size)
            left: list[Path] = []
            while True:
                (self.folder / LEFT_OUT).write_text(
                    json.dumps({str(it.relative_to(self.folder)): size(it) for it in left})
                )
                self._pack([*files, self.folder / LEFT_OUT])
                if self.file.stat().st_size <= LARGEST or not files:
                    return
                left.append(files.pop())

    def _pack(self, files: list[Path]) -> None:
        beside = self.file.with_name(f".{self.file.name}.new")
        with tarfile.open(beside, "w:xz", preset=2) as packed:
            for path in files:
                if path.exists():
                    packed.add(path, str(path.relative_to(self.folder)))
        beside.replace(self.file)

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name != LEFT_OUT and not path.name.endswith((".partial", ".new")):
                yield path


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def read(file: Path, into: Path) -> list[Record]:
    """Unpacks an archive, and returns its records."""
    with tarfile.open(file) as packed:
        packed.extractall(into, filter="data")
    return records(into)


def records(folder: Path) -> list[Record]:
    """Those of an unpacked archive; a last line that was cut off is left out."""
    found = []
    for line in (folder / RECORDS).read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def summary(found: list[Record]) -> Iterator[str]:
    """All steps with what became of their cases, and every failure in one table."""
    about: dict[str, Any] = next((it for it in found if it["kind"] == "session"), {})
    yield f"# {about.get('command', '')}: {about.get('gpu') or 'no GPU, a rehearsal whose times mean nothing'}"
    yield ""
    yield "| step | | passed | failed | not run | seconds | |"
    yield "|---|---|--:|--:|--:|--:|---|"
    cases = [it for it in found if it["kind"] == "case"]
    for step in (it for it in found if it["kind"] == "step"):
        own = [it for it in cases if it["step"] == step["step"]]
        counts = [sum(it["status"] == "passed" for it in own), sum(map(is_wrong, own))]
        counts.append(len(own) - sum(counts) + len(step.get("untried", ())))
        shown = (step["step"], step["status"], *counts, f"{step['seconds']:.0f}", step.get("reason", ""))
        yield f"| {' | '.join(map(str, shown))} |"
    yield ""
    wrong = [it for it in cases if is_wrong(it)]
    yield f"{len(wrong)} of {len(cases)} cases failed." if wrong else f"None of {len(cases)} cases failed."
    compiled = sum(len(it.get("compiled", ())) for it in cases)
    if compiled:
        yield f"Triton compiled {compiled} kernels that no cache had."
    if wrong:
        yield ""
        yield "| step | case | | |"
        yield "|---|---|---|---|"
        for it in wrong:
            error = " ".join(it.get("error", "").split()).replace("|", "/")[:300]
            yield f"| {it['step']} | {it['case']} | {it['status']} | {error} |"
