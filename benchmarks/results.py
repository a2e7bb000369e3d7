"""A folder of committed results, read: environment.json and what pytest-benchmark wrote, operators*.json[.gz]."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.baselines import BASELINES
from benchmarks.files import load_json
from ddfast.operators.backends import PREFERENCE

FILES = "operators*.json*"  # compressed or not

Key = tuple[str, str, str]  # operator, workload, direction


def device_of(here: dict[str, Any]) -> str:
    return here["gpu"] or f"{here['cpu']}, {here['threads']} thread{'' if here['threads'] == 1 else 's'}"


@dataclass(frozen=True)
class Results:
    folder: Path

    @cached_property
    def environment(self) -> dict[str, Any]:
        return load_json(self.folder / "environment.json")

    @property
    def device(self) -> str:
        return device_of(self.environment)

    @cached_property
    def groups(self) -> dict[Key, dict[str, dict[str, Any]]]:
        """Of each group its contenders: extra_info with the samples in seconds as `samples`."""
        groups: dict[Key, dict[str, dict[str, Any]]] = {}
        for path in sorted(self.folder.glob(FILES)):
            for row in load_json(path)["benchmarks"]:
                info = row["extra_info"] | {"samples": row["stats"]["data"]}
                key = (info["operator"], info["workload"], info["direction"])
                groups.setdefault(key, {})[info["contender"]] = info
        return groups

    def ours(self, key: Key) -> dict[str, Any] | None:
        """The backend that runs by default on that device, of those that were measured."""
        order = PREFERENCE["cuda" if self.environment["gpu"] else "cpu"]
        measured = self.groups.get(key, {})
        return next((measured[name] for name in order if name in measured), None)

    def scaled(self, workload: str) -> str:
        """The name with its scale, where that is not the full one."""
        scales = (info["scale"] for key, of in self.groups.items() if key[1] == workload for info in of.values())
        return next((f"{workload}, {scale}" for scale in scales if scale != "full"), workload)

    def backends(self, key: Key) -> list[str]:
        return [name for name in self.groups[key] if name not in BASELINES]


def latest(root: Path, wanted: Callable[[Key], bool]) -> list[Results]:
    """The newest results of each machine that have a group of those wanted."""
    folders = {file.parent for file in root.glob(f"*/*/{FILES}")}
    every = [results for results in map(Results, folders) if any(map(wanted, results.groups))]
    newest: dict[str, Results] = {}
    for results in sorted(every, key=lambda results: results.environment["time"]):
        newest[results.folder.parent.name] = results
    return [newest[name] for name in sorted(newest)]
