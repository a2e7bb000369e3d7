"""What compilers made of the kernels: counts of machine instructions, results in a file, and how two files differ."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import triton

from benchmarks.environment import RESULTS, commit, dirty, versions
from benchmarks.files import save_json

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
IDENTITY = ("kernel", "workload", "dtype", "chip", "number")  # `number` counts the configurations that share the rest


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


def save(path: Path, rows: list[Row]) -> None:
    """Rows with the versions and the commit that they are of."""
    save_json(path, {"commit": commit(), "dirty": dirty(), "versions": versions(), "rows": rows})


def numbered(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """Rows by what identifies them."""
    seen: Counter[tuple[Any, ...]] = Counter()
    found = {}
    for row in rows:
        key = tuple(row[name] for name in IDENTITY[:-1])
        found[*key, seen[key]] = row
        seen[key] += 1
    return found


def differences(before: Iterable[Row], after: Iterable[Row]) -> Iterator[str]:
    """A line for every configuration whose counts differ, then how many are the same, new or gone."""
    old, new = numbered(before), numbered(after)
    same = 0
    for key in filter(new.__contains__, old):
        was, now = (Counter({**row, **row["sass"]}) for row in (old[key], new[key]))
        names = [name for name in {**was, **now} if name not in ("sass", *IDENTITY) and was[name] != now[name]]
        changed = [f"{name} {was[name]} -> {now[name]}" for name in names]
        if changed:
            yield f"{' '.join(map(str, key[:-1]))}{f' #{key[-1]}' if key[-1] else ''}: {', '.join(changed)}"
        same += not changed
    yield f"{same} configurations are the same, {len(new.keys() - old.keys())} new, {len(old.keys() - new.keys())} gone"


def line(row: Row) -> str:
    """A row as it is printed."""
    cells = [str(value) for name, value in row.items() if name in IDENTITY or name == "architecture"]
    cells += [f"{name} {value}" for name, value in row.items() if isinstance(value, int)]
    return "  ".join(
        [*cells, *(f"{name} {value}" for name, value in row.get("sass", {}).items()), row["complaint"]]
    ).rstrip()
