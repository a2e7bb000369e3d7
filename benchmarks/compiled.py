"""What compilers made of the kernels: counts of machine instructions, results in files, how two differ, and their page.

COMPILED holds triton-<version>.json.gz for each Triton and cuda.json.gz for nvcc, which `python -m benchmarks.kernels
--write` brings up to date; docs/kernels.md shows them. <commit>-triton-<version>.json.gz is of an earlier commit.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import triton

from benchmarks.environment import RESULTS, commit, dirty, versions
from benchmarks.files import load_json, save_json

COMPILED = RESULTS / "compiled"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)(\S*)")
PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "DMMA")
ARITHMETIC = ("FFMA", "DFMA", "MUFU")
MEMORY = ("LDG", "LDGSTS", "STG")  # from global memory to registers and to shared memory, and back
ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")
TMA = ("UTMALDG", "UTMASTG", "UBLKCP")
WIDTH = re.compile(r"\.(?:[US]?(8|16)|(64|128))(?:\.|$)")

Row = dict[str, Any]
# what identifies a row; `number` counts the configurations that share the rest
IDENTITY = ("kernel", "workload", "dtype", "chip", "architecture", "number")


def read_sass(cubin: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """Registers a thread, bytes of stack and of local memory (spills); and machine instructions by kind."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {"registers": "REG", "stack": "STACK", "spills": "LOCAL"}
    return {name: int(re.search(rf"{key}:(\d+)", text)[1]) for name, key in names.items()}, count(text)


def count(sass: str) -> dict[str, int]:
    """All instructions but padding, and those of the kinds above; accesses to global memory by their width in bits."""
    found: Counter[str] = Counter()
    for name, suffix in INSTRUCTION.findall(sass):
        if name == "NOP":
            continue
        found["all"] += 1
        if name in MEMORY:
            width = WIDTH.search(suffix)
            found[f"{name}.{(width[1] or width[2]) if width else 32}"] += 1
        elif name in (*PRODUCTS, *ATOMICS, *TMA):
            found[name] += 1
        elif kind := next((kind for kind in ARITHMETIC if name.startswith(kind)), None):  # FFMA2 is two FFMA
            found[kind] += 1
    return dict(sorted(found.items()))


def save(path: Path, compiler: str, rows: list[Row]) -> None:
    """Rows with the versions and the commit that they are of."""
    about = {"compiler": compiler, "commit": commit(), "dirty": dirty(), "versions": versions()}
    save_json(path, about | {"rows": rows})


def outdated(path: Path, compiler: str, rows: list[Row]) -> str | None:
    """Why what is committed is not what was just compiled, in a sentence; None if it is. Other chips are left out."""
    held = load_json(path) if path.exists() else {"compiler": "nothing"}
    if held["compiler"] != compiler:
        print(f"{path.name} is of {held['compiler']}, and this is {compiler}: not compared")
        return None
    chips = {row.get("chip") for row in rows}
    lines = list(differences([row for row in held["rows"] if row.get("chip") in chips], rows))
    if lines[-1] == f"{len(rows)} configurations are the same, 0 new, 0 gone":
        return None
    return "\n".join([*lines, f"{path.name} is of other kernels: run python -m benchmarks.kernels --write"])


def numbered(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """Rows by what identifies them."""
    seen: Counter[tuple[Any, ...]] = Counter()
    found = {}
    for row in rows:
        key = tuple(row[name] for name in IDENTITY if name in row)
        found[*key, seen[key]] = row
        seen[key] += 1
    return found


def differences(before: Iterable[Row], after: Iterable[Row]) -> Iterator[str]:
    """A line for every configuration whose counts differ, then how many are the same, new or gone."""
    old, new = numbered(before), numbered(after)
    same = 0
    for key in filter(new.__contains__, old):
        was, now = (Counter({**row, **row.get("sass", {})}) for row in (old[key], new[key]))
        names = [name for name in {**was, **now} if name not in ("sass", *IDENTITY) and was[name] != now[name]]
        changed = [f"{name} {was[name]} -> {now[name]}" for name in names]
        if changed:
            yield f"{' '.join(map(str, key[:-1]))}{f' #{key[-1]}' if key[-1] else ''}: {', '.join(changed)}"
        same += not changed
    yield f"{same} configurations are the same, {len(new.keys() - old.keys())} new, {len(old.keys() - new.keys())} gone"


def line(row: Row) -> str:
    """A row as it is printed."""
    cells = [str(value) for name, value in row.items() if name in IDENTITY]
    cells += [f"{name} {value}" for name, value in row.items() if isinstance(value, int)]
    return "  ".join(
        [*cells, *(f"{name} {value}" for name, value in row.get("sass", {}).items()), row["complaint"]]
    ).rstrip()


def tables(folder: Path, chips: list[str]) -> dict[str, list[str]]:
    """Lines of docs/kernels.md by the name of their markers."""
    found = {path: load_json(path) for path in sorted(folder.glob("triton-*.json.gz"))}
    newest = list(found.values())[-1]
    summary = ["| compiler | commit | configurations | that fail |", "|---|---|--:|---|"]
    for held in found.values():
        bad = [
            f"{row['kernel']}, {row['workload']}, {row['dtype']}, {row['chip']}: {row['complaint']}"
            + (f", {row['stack']} bytes of stack" if row["stack"] else "")
            for row in held["rows"]
            if row["complaint"]
        ]
        cells = held["compiler"], held["commit"], len(held["rows"]), "<br>".join(bad) or "none"
        summary.append(f"| {' | '.join(map(str, cells))} |")
    head = ["kernel", "first workload", "registers", "blocks", "shared memory in KiB", "instructions"]
    head += [f"{name}, {chips[1]}" for name in ("products", "loads", "stores")]
    wide = [f"{newest['compiler']}, float32, {' / '.join(chips)}:", "", f"| {' | '.join(head)} |"]
    wide.append("|---|---|" + "--:|" * 4 + "---|" * 3)
    rows = numbered(row for row in newest["rows"] if row["dtype"] == "float32")
    for key in dict.fromkeys((key[:2], key[-1]) for key in rows):
        (kernel, workload), number = key
        of = [rows.get((kernel, workload, "float32", chip, number)) for chip in chips]
        sass = of[1]["sass"] if of[1] else {}
        counts = (
            *([row and row[name] for row in of] for name in ("registers", "blocks")),
            [row and f"{row['shared'] / 1024:.0f}" for row in of],
            [row and row["sass"]["all"] for row in of],
        )
        cells = [" / ".join("–" if it is None else str(it) for it in each) for each in counts]
        for kinds in (PRODUCTS, ("LDG", *TMA[:1]), ("STG", *TMA[1:2])):
            cells.append(", ".join(f"{count} {name}" for name, count in sass.items() if name.startswith(kinds)))
        wide.append(f"| {' | '.join([kernel, workload, *cells])} |")
    made = {"triton": [*summary, "", *wide]}
    if (folder / "cuda.json.gz").exists():
        held = load_json(folder / "cuda.json.gz")
        made["cuda"] = [f"{held['compiler']}, commit {held['commit']}:", ""]
        made["cuda"] += ["| kernel | architecture | registers | stack | spills |", "|---|---|--:|--:|--:|"]
        for row in held["rows"]:
            cells = [row[name] for name in ("kernel", "architecture", "registers", "stack", "spills")]
            made["cuda"].append(f"| {' | '.join(map(str, cells))} |")
    return made


def page(text: str, folder: Path, chips: list[str]) -> str:
    """docs/kernels.md with the tables of what is committed."""
    for name, lines in tables(folder, chips).items():
        head, begin, rest = text.partition(f"<!-- {name}:begin -->")
        end = f"<!-- {name}:end -->"
        text = "\n".join([head + begin, *lines, end + rest.partition(end)[2]])
    return text
