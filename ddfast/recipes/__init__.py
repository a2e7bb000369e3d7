"""Runs by name. A file here is a recipe of the file's name, or the recipes METHOD/DATA-ipcN of a method.

Those have the keys of METHOD.toml, then of its tables [DATA], [ipcN] and [DATA-ipcN], later ones winning over earlier.
`base` names files whose keys come before, each once, and the first of them has all tables. What is for the reader,
`description` and `source`, adds up instead; a file without a description is part of others and no recipe.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterable
from importlib import resources
from typing import Any

from ddfast.distill.config import Config, nearest, read_toml
from ddfast.errors import UserError

TEXTS = ("description", "source")

_FOLDER = resources.files(__name__)

Keys = dict[str, Any]


def recipes() -> dict[str, Keys]:
    """Every recipe by its name: its keys, and what of TEXTS it has.

    Raises:
        UserError: if a file has an unknown key.
    """
    with resources.as_file(_FOLDER) as folder:
        files = {path.stem: read_toml(path) for path in sorted(folder.glob("*.toml"))}
    found: dict[str, Keys] = {}
    for method, content in files.items():
        _check_keys(f"{method}.toml", content)
        if "description" not in content:
            continue
        chain = [files[name] for name in _chain(method, files)]
        tables = [name for name, value in chain[0].items() if isinstance(value, dict)]
        if not tables:
            found[method] = _joined(chain)
        ipcs = [name for name in tables if name.startswith("ipc")]
        for data, ipc in itertools.product([name for name in tables if name not in ipcs], ipcs):
            parts = ((file, *(file.get(it, {}) for it in (data, ipc, f"{data}-{ipc}"))) for file in chain)
            found[f"{method}/{data}-{ipc}"] = _joined(itertools.chain(*parts))
    return found


def from_recipe(name: str) -> Config:
    """The configuration of a recipe.

    Raises:
        UserError: if there is none of that name.
    """
    keys = {key: value for key, value in _find(name).items() if key not in TEXTS}
    return Config().replace(**keys, recipe=name)


def printed(name: str) -> str:
    """All keys of a recipe as TOML, after what is said about it as comments; raises as `from_recipe`."""
    texts = (_find(name)[key] for key in TEXTS if key in _find(name))
    comments = [f"# {line}" for text in texts for line in textwrap.wrap(text, 110)]
    return "\n".join([*comments, from_recipe(name).dumps()])


def _find(name: str) -> Keys:
    known = recipes()
    if name not in known:
        raise UserError(
            f"there is no recipe {name!r}, only those that ddfast recipes lists{nearest(name, list(known))}"
        )
    return known[name]


def _chain(method: str, files: dict[str, Keys]) -> list[str]:
    """The methods that one is made of, its own file last."""
    before = [name for base in files[method].get("base", ()) for name in _chain(base, files)]
    return list(dict.fromkeys([*before, method]))


def _joined(parts: Iterable[Keys]) -> Keys:
    keys: Keys = {}
    for part in parts:
        for key, value in part.items():
            if key != "base" and not isinstance(value, dict):
                keys[key] = f"{keys[key]} {value}" if key in TEXTS and key in keys else value
    return keys


def _check_keys(file: str, content: Keys) -> None:
    known = [*(key.name for key in dataclasses.fields(Config)), *TEXTS, "base"]
    for table in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key, value in table.items():
            if key not in known and not isinstance(value, dict):
                raise UserError(f"{file} has an unknown key {key!r}{nearest(key, known)}")
