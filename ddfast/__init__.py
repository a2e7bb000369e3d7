"""Fast dataset distillation: losses in `ddfast.functional` and `ddfast.nn`, an engine behind `ddfast distill`."""

from ddfast import functional, nn
from ddfast.moments import ClassMoments
from ddfast.segments import ClassSegments

__version__ = "0.1.0"
__all__ = ["ClassMoments", "ClassSegments", "functional", "nn"]
