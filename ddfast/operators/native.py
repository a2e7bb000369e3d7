"""The cpp backend: loading ddfast._C registers its functions under the schemas that are declared here."""

import importlib
from types import ModuleType

from ddfast.operators import backends
from ddfast.operators.library import declare
from ddfast.operators.schemas import SIGNATURES

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
