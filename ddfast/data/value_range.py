"""What the values of floating point images are: pixels from 0 to 1, pixels from 0 to 255, or normalised."""

from typing import Literal

import torch
from torch import Tensor

ValueRange = Literal["0 to 1", "0 to 255", "normalised"]


def value_range_of(images: Tensor) -> ValueRange | None:
    """The range that finite floating point images (N, ...) have, or None where their values leave it open.

    The distribution decides, not its bounds: one pixel of -1e-7 after denormalising in float32, or an overshoot of
    1.02 after resizing, does not make pixels normalised. Normalised images have a mean near 0, so that many of their
    values are negative. Pixels have almost none. Images with values from -1 to 1 are left open, for their mean and
    deviation are hardly those of a data set.
    """
    values = images.detach().flatten().to(torch.float64)
    extent = float(values.abs().max()) if values.numel() else 0.0
    if extent == 0:
        return "0 to 1"
    every = values.numel() // 2**22 + 1  # torch.quantile takes 2^24 values at most
    typical = float(values[::every].abs().quantile(0.99))
    negative = float((values < -0.01 * typical).to(torch.float64).mean())
    if negative > 0.05:
        return None if extent <= 1.05 else "normalised"
    if negative > 0.005:
        return None
    if typical <= 1.05:
        return "0 to 1"
    return "0 to 255" if typical >= 16 and extent <= 300 else None
