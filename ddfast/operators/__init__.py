"""Schemas, fakes, autograd functions and the choice of backend; the implementations are overloads of these schemas.

Importing this package registers every operator, so that none is registered on first use inside compiled code.
"""

from ddfast.operators import closed_form, native  # noqa: F401  backends register themselves
from ddfast.operators.complexity import class_complexity
from ddfast.operators.matching import moment_matching
from ddfast.operators.moments import class_moments

__all__ = ["class_complexity", "class_moments", "moment_matching"]
