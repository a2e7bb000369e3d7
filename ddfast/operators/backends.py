"""Which implementation of an operator runs: the caller's choice, or the fastest one that can run here."""

import difflib
import functools
import os
from collections.abc import Callable
from importlib import metadata

import torch

BACKENDS = ("reference", "cpp", "triton", "cuda")
# on CUDA by prediction, until a table of the GPU (kernels/tables/) says that `cuda` was measured to be faster
PREFERENCE = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpp", "reference")}

implemented: dict[str, set[str]] = {backend: set() for backend in BACKENDS}  # backend -> its operators
absent: dict[str, str] = {}  # backend -> why none of its operators is here
faster: dict[str, Callable[[torch.device], str | None]] = {}  # "cuda" -> the backend that the table of a GPU prefers


def refusal(backend: str, operator: str, device: torch.device) -> str | None:
    """Why `backend` cannot run `operator` on tensors of `device`, in a sentence; None if it can."""
    if not implemented[backend]:
        reason = f": {absent[backend]}" if backend in absent else ""
        return f"backend {backend!r} is not here{reason}"
    if operator not in implemented[backend]:
        return f"backend {backend!r} does not implement {operator}"
    if backend == "cpp" and device.type != "cpu":
        return f"backend 'cpp' needs CPU tensors, got {device.type} tensors"
    if backend == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return interpreter_refusal()
    if backend in ("triton", "cuda") and device.type != "cuda":
        return f"backend {backend!r} needs CUDA tensors, got {device.type} tensors"
    return None


@functools.cache
def interpreter_refusal() -> str | None:
    """Why Triton's interpreter cannot run here: 3.6 makes integers of arrays of one element, as NumPy 2.4 does not."""
    triton, numpy = (metadata.version(name) for name in ("triton", "numpy"))
    if _release(triton) >= (3, 7) or _release(numpy) < (2, 4):
        return None
    return f"the interpreter of Triton {triton} does not run with NumPy {numpy}: install 'numpy<2.4' or 'triton>=3.7'"


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def measured(device: torch.device) -> str | None:
    """The backend that was measured to be the faster one on that GPU; None where nobody has measured."""
    return faster[device.type](device) if device.type in faster else None


def preferred(device: torch.device) -> tuple[str, ...]:
    """Backends in the order in which they are tried: what was measured on that GPU comes first."""
    order = PREFERENCE.get(device.type, ("reference",))
    first = measured(device)
    return order if first is None else (first, *(name for name in order if name != first))


def choose(operator: str, device: torch.device, backend: str | None) -> str:
    """The backend that runs `operator`; a named one is never replaced by another.

    Raises:
        ValueError: if `backend` is no backend's name.
        NotImplementedError: if it cannot run here; the message says why.
    """
    if backend is None:
        return next(name for name in preferred(device) if refusal(name, operator, device) is None)
    if backend not in BACKENDS:
        near = difflib.get_close_matches(str(backend), BACKENDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}{hint}")
    reason = refusal(backend, operator, device)
    if reason is not None:
        raise NotImplementedError(reason)
    return backend
