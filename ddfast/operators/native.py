"""Native code: loading ddfast._C registers the cpp backend, under schemas declared here; ddfast._C_cuda is for CUDA."""

import importlib
import importlib.util
from types import ModuleType

import torch

from ddfast.operators import backends
from ddfast.operators.library import SIGNATURES, declare

module: ModuleType | None = None  # ddfast._C, where it is

try:
    module = importlib.import_module("ddfast._C")
except ModuleNotFoundError:
    backends.absent["cpp"] = "ddfast._C was not built"
except ImportError as error:
    backends.absent["cpp"] = f"ddfast._C does not load: {error}"
else:
    for _operator in SIGNATURES:
        declare("cpp", _operator)


def load_cuda() -> bool:
    """Loads ddfast._C_cuda, which only a PyTorch with CUDA can; what it registers is called by `cuda_matching`."""
    spec = importlib.util.find_spec("ddfast._C_cuda")
    if torch.version.cuda is None:
        backends.absent["cuda"] = "this PyTorch has no CUDA"
    elif spec is None or spec.origin is None:
        backends.absent["cuda"] = "ddfast._C_cuda was not built"
    else:
        try:
            torch.ops.load_library(spec.origin)
        except OSError as error:
            backends.absent["cuda"] = f"ddfast._C_cuda does not load: {error}"
    return "cuda" not in backends.absent
