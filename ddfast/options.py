"""The keys of a run as options of a command, so that a key is written down once."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from ddfast.distill.config import Config, key_type, nearest
from ddfast.errors import UserError

_DATA = ("image_size", "mean", "std", "holdout")
_SAME_FOR_ALL = ("recipe", "data", *_DATA, "seed", "device")


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for every key of Config in the place of its **options; None stands for not given."""
    return _with_options(command, [key.name for key in dataclasses.fields(Config)])


def with_data_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same for the keys that say how data are loaded."""
    return _with_options(command, _DATA)


def with_evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same for the keys of an evaluation, of all its networks."""
    network = ("width", "depth", "norm", "activation", "pooling")
    training = ("partition", "augmentation", "epochs", "repeats", "whole_epochs", "seed", "device")
    names = ("data", *_DATA, *network, *training)
    return _with_options(command, names, defaults=False)  # they are a run's, where there is one


def _with_options(command: Callable[..., None], names: Sequence[str], defaults: bool = True) -> Callable[..., None]:
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    keys = [_option(key, defaults) for key in dataclasses.fields(Config) if key.name in names]
    command.__signature__ = signature.replace(parameters=[*own, *keys])  # type: ignore[attr-defined]
    return command


def _option(key: dataclasses.Field[Any], default: bool) -> inspect.Parameter:
    kind, _ = key_type(key.name)
    shown = f" [default: {key.default}]" if default and key.default not in (None, "") else ""
    name = key.name.replace("_", "-")
    names = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
    option = typer.Option(names, help=key.metadata["help"] + shown, show_default=False)
    annotation: Any = Annotated[str if kind is tuple else kind, option]
    return inspect.Parameter(key.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def given_keys(options: dict[str, Any]) -> dict[str, Any]:
    """The keys that were given, with their values; numbers a channel come separated by commas, "none" is no value."""
    return {name: _value(name, value) for name, value in options.items() if value is not None}


def _value(name: str, value: Any) -> Any:
    if key_type(name)[0] is not tuple:
        return value
    if value == "none":
        return None
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise UserError(f"{name} must be numbers separated by commas, got {value!r}") from None


def parse_grid(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values of each key in words such as "cmi_weight=0,0.1", of the key's type; "none" is no number.

    What is not of that type stays text, which Config refuses.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    known = [key.name for key in dataclasses.fields(Config)]
    for word in words:
        name, _, values = word.partition("=")
        name = name.strip().replace("-", "_")
        if not values:
            raise UserError(f"grid must be KEY=VALUE,VALUE and so on, got {word!r}")
        if name not in known:
            raise UserError(f"grid has an unknown key {name!r}{nearest(name, known)}")
        if name in _SAME_FOR_ALL:
            raise UserError(f"grid must not vary {name}, which is the same for all points of a sweep")
        if name in grid:
            raise UserError(f"grid has {name} twice; give all its values together")
        grid[name] = tuple(dict.fromkeys(_parsed(name, value.strip()) for value in values.split(",")))
    return grid


def _parsed(name: str, text: str) -> Any:
    kind, optional = key_type(name)
    if optional and kind is not str and text == "none":  # but a norm may be called so
        return None
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return text
