"""Which implementation of an operator runs: the caller's choice, or the fastest one that can run here."""

import difflib
import os

import torch

BACKENDS = ("reference", "cpp", "triton", "cuda")
PREFERENCE = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpp", "reference")}

implemented: dict[str, set[str]] = {backend: set() for backend in BACKENDS}  # backend -> its operators
absent: dict[str, str] = {}  # backend -> why none of its operators is here


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
        return None
    if backend in ("triton", "cuda") and device.type != "cuda":
        return f"backend {backend!r} needs CUDA tensors, got {device.type} tensors"
    return None


def choose(operator: str, device: torch.device, backend: str | None) -> str:
    """The backend that runs `operator`; a named one is never replaced by another.

    Raises:
        ValueError: if `backend` is no backend's name.
        NotImplementedError: if it cannot run here; the message says why.
    """
    if backend is None:
        candidates = PREFERENCE.get(device.type, ("reference",))
        return next(name for name in candidates if refusal(name, operator, device) is None)
    if backend not in BACKENDS:
        near = difflib.get_close_matches(str(backend), BACKENDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}{hint}")
    reason = refusal(backend, operator, device)
    if reason is not None:
        raise NotImplementedError(reason)
    return backend
