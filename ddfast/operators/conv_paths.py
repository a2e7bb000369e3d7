"""How the first block of a ConvNet is computed on a GPU: what was measured on it, else what is predicted."""

import torch
from torch import Tensor

from ddfast.kernels.blocks_tiling import fastest
from ddfast.operators.launch import chip_of


def precision_of(images: Tensor) -> str:
    """ "half" for 16 bits, "tf32" if cuDNN's convolutions of float32 are, "float32" or "float64"."""
    if images.dtype.itemsize == 2:
        return "half"
    if images.dtype == torch.float64:
        return "float64"
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if tf32 else "float32"


def conv_path(operator: str, images: Tensor, kernel: Tensor, padding: int) -> str:
    """ "fma", "product" or "plain", as `fastest` says; the operator itself takes "plain" for "fma"."""
    height, width = (extent + 2 * padding - 2 for extent in images.shape[2:])
    return fastest(operator, height * width, precision_of(images), chip_of(images.device))
