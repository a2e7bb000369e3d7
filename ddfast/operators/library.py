"""The torch.library side: each operator has a schema, and an overload for every backend that implements it.

`torch.ops.ddfast.<operator>.<backend>` is what an autograd function calls. All overloads of an operator have the same
signature, so a caller need not know which one it got.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddfast.operators import backends, block_schemas, schemas

SIGNATURES = schemas.SIGNATURES | block_schemas.SIGNATURES
FAKES = schemas.FAKES | block_schemas.FAKES

_library = torch.library.Library("ddfast", "DEF")


def implement(backend: str, operator: str, function: Callable[..., Any], key: str) -> None:
    """Registers `function` as the operator's `backend` overload, under a dispatch key."""
    declare(backend, operator)
    _library.impl(f"{operator}.{backend}", function, key)


def declare(backend: str, operator: str) -> None:
    """Registers the schema and the fake of an overload; native code registers its function under the same name."""
    name = f"{operator}.{backend}"
    _library.define(name + SIGNATURES[operator])
    torch.library.register_fake(f"ddfast::{name}", FAKES[operator], lib=_library)
    backends.implemented[backend].add(operator)


def internal(schema: str) -> None:
    """Registers the schema of an operator that only an implementation calls; native code registers its function."""
    _library.define(schema)


def overload(operator: str, backend: str | None, tensor: Tensor) -> Callable[..., Any]:
    """The overload that runs on `tensor`'s device."""
    return getattr(getattr(torch.ops.ddfast, operator), backends.choose(operator, tensor.device, backend))
