"""The cpp backend: loading ddfast._C registers its functions under the schemas declared here."""

from ddfast.operators import backends
from ddfast.operators.library import declare

try:
    from ddfast import _C  # noqa: F401
except ImportError as error:
    backends.absent["cpp"] = f"ddfast._C is not here: {error}"
else:
    for _operator in (
        "class_complexity",
        "class_complexity_backward",
        "class_moments",
        "moment_matching",
        "moment_matching_to_moments",
        "moment_matching_backward",
    ):
        declare("cpp", _operator)
