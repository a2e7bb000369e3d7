"""How good a set of images is: networks trained on it from nothing, tested on real images."""

from ddfast.evaluate.foreign import read_images
from ddfast.evaluate.protocol import Protocol
from ddfast.evaluate.table import evaluate_all, evaluate_baseline, evaluate_distilled

__all__ = ["Protocol", "evaluate_all", "evaluate_baseline", "evaluate_distilled", "read_images"]
