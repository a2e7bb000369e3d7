"""An archive of results into benchmarks/results/<gpu>/<date>-<commit>/ and README's tables.

    python -m benchmarks.gpu read first.tar.xz second.tar.xz [--into FOLDER] [--readme FILE]

What failed is printed, and kept in gpu-bundle/again.json, from where the second command repeats it. Beside each time
that was predicted stands what was measured. A rehearsal is read only with --into: its times mean nothing.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy, report
from benchmarks.environment import RESULTS, ROOT
from benchmarks.files import save_json
from benchmarks.gpu import predictions
from benchmarks.gpu.archive import SUMMARY, read
from benchmarks.gpu.arrival import AGAIN, BUNDLE
from benchmarks.gpu.case import Record, is_wrong

OPERATORS = "operators-gpu.json.gz"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, help="default: benchmarks/results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    wrong: list[str] = []
    for archive in options.archives:
        with tempfile.TemporaryDirectory() as temporary:
            found = read(archive, Path(temporary))
            about = next(it for it in found if it["kind"] == "session")
            if about["toy"] and options.into is None:
                parser.error(f"{archive} is of a rehearsal, whose times mean nothing; --into takes it all the same")
            target = place(options.into or RESULTS, about)
            take(found, Path(temporary), target)
        print(target)
        print((target / f"{about['command']}.md").read_text())
        print("\n".join(compared(found)))
        wrong += failures(found)
    if BUNDLE.exists():  # the second command repeats them
        (BUNDLE / AGAIN).write_text(json.dumps(wrong, indent=1) + "\n")
    if options.into is None:
        report.update(options.readme, RESULTS, check=False)
    return 0


def place(root: Path, about: Record) -> Path:
    here = about["environment"]
    return root / here["machine"] / f"{here['time'][:10]}-{here['commit']}"


def take(found: list[Record], unpacked: Path, target: Path) -> None:
    """Writes what the archive holds in the form that README's tables are made from."""
    target.mkdir(parents=True, exist_ok=True)
    about = next(it for it in found if it["kind"] == "session")
    (target / "environment.json").write_text(json.dumps(about["environment"], indent=1) + "\n")
    save_json(target / f"{about['command']}.json.gz", found)
    shutil.copy(unpacked / SUMMARY, target / f"{about['command']}.md")
    rows = list(benchmarks(found))
    if rows:
        save_json(target / OPERATORS, {"benchmarks": rows})
    for folder in sorted((unpacked / "runs").glob("*")):
        images = shutil.ignore_patterns("*.safetensors")  # large, and a run from the same keys makes them again
        shutil.copytree(folder, target / folder.name, ignore=images, dirs_exist_ok=True)
    for run in target.glob("*/*/"):
        if not (run / "environment.json").exists() and (run / "config.toml").exists():
            (run / "environment.json").write_text(json.dumps(about["environment"], indent=1) + "\n")
    for folder in target.glob("accuracy-*"):
        if accuracy.results(folder):
            accuracy.draw(folder)
    for table in (unpacked / "tables").glob("*.json"):
        shutil.copy(table, target / f"table-{table.name}")


def benchmarks(found: list[Record]) -> Iterator[dict[str, Any]]:
    """As pytest-benchmark writes them, one for each contender: its first samples, and its ratios to all baselines."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    peaks = dict(peaks_of(found))
    for record in found:
        for row in record.get("benchmarks", ()):
            info = row["extra_info"]
            key = tuple(info[name] for name in ("operator", "workload", "direction", "contender"))
            if key in rows:
                held = rows[key]["extra_info"]
                held["times_as_fast_as"] = info["times_as_fast_as"] | held["times_as_fast_as"]
            else:
                rows[key] = row
            if info["operator"] == "iteration":
                info.setdefault("peak_bytes", peaks.get((info["workload"], info["contender"]), float("nan")))
    yield from rows.values()


def peaks_of(found: list[Record]) -> Iterator[tuple[tuple[str, str], int]]:
    """Bytes that an iteration allocates beyond what was there, by setting and contender."""
    for record in found:
        peak = record.get("held", {}).get("peak_bytes")
        if peak is not None:
            name = record["case"].removeprefix("memory ").removesuffix(record["held"]["contender"]).strip()
            yield (name, record["held"]["contender"]), peak["allocated"] - peak["before"]


def failures(found: list[Record]) -> list[str]:
    """As "STEP: CASE"; what failed when it was done again keeps the name of the step that it is of."""
    wrong = [it for it in found if it["kind"] == "case" and is_wrong(it)]
    return [it["case"] if it["step"] == "again" else f"{it['step']}: {it['case']}" for it in wrong]


def compared(found: list[Record]) -> Iterator[str]:
    """What was measured, beside what was predicted."""
    measured = {
        tuple(row["extra_info"][name] for name in ("operator", "workload", "direction", "contender")): row["extra_info"]
        for row in benchmarks(found)
    }
    yield "| operator | workload | predicted | measured | by | of the floor |"
    yield "|---|---|--:|--:|---|--:|"
    for (operator, workload), seconds in predictions.PREDICTED.items():
        for direction in ("both-graph", "both"):
            for backend in ("cuda", "triton", "reference", "cpp"):
                info = measured.get((operator, workload, direction, backend))
                if info is not None:
                    value, share = info["median_s"]["value"], info["fraction_of_floor"]
                    cells = (operator, workload, f"{1e6 * seconds:.0f} µs", f"{1e6 * value:.0f} µs")
                    yield f"| {' | '.join(cells)} | {backend}, {direction} | {share:.0%} |"
