"""Schemas, fakes, autograd functions and the choice of backend; the implementations are overloads of these schemas.

Importing this package registers every operator, so that none is registered on first use inside compiled code.
"""

from importlib.util import find_spec

from ddfast.operators import closed_form  # noqa: F401  the reference backend registers itself
from ddfast.operators.complexity import class_complexity
from ddfast.operators.matching import moment_matching
from ddfast.operators.moments import class_moments

if find_spec("triton"):
    from ddfast.operators import triton_complexity, triton_matching  # noqa: F401

__all__ = ["class_complexity", "class_moments", "moment_matching"]
