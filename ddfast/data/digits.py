"""Real handwritten digits that need no download: they come with scikit-learn."""

from collections.abc import Sequence

import numpy as np

from ddfast.data.dataset import Dataset, Split
from ddfast.errors import UserError


def load_digits(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Dataset:
    """scikit-learn's 1,797 digits of 8x8 pixels in one channel: a third of every class tests, the rest trains.

    The file is ordered by writer, so the test images are a fixed random choice.
    Raises `UserError` without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError("the digits come with scikit-learn, which is missing: pip install 'ddfast[digits]'") from error
    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = Split.from_arrays(pixels, digits.target, 10).divide(1 / 3, 0, "digits")
    return Dataset.from_splits("digits", train, test, [str(digit) for digit in range(10)], mean, std)
