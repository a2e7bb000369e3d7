"""Schemas, fakes, autograd functions and the choice of backend; the implementations are overloads of these schemas.

Importing this package registers every operator, so that none is registered on first use inside compiled code.
"""

import os
from importlib.util import find_spec

import torch

from ddfast.operators import (  # noqa: F401  backends register themselves
    backends,
    closed_form,
    closed_form_blocks,
    native,
    reference_augment,
)
from ddfast.operators.augment import augment
from ddfast.operators.blocks import conv_block, norm_block
from ddfast.operators.complexity import class_complexity
from ddfast.operators.convolution import conv3x3
from ddfast.operators.matching import moment_matching
from ddfast.operators.moments import class_moments

if torch.version.cuda is None and os.environ.get("TRITON_INTERPRET") != "1":
    reason = "this PyTorch has no CUDA, and TRITON_INTERPRET=1 is not set"
elif find_spec("triton") is None:
    reason = "the package triton is missing"
elif find_spec("ddfast.kernels") is None:
    reason = "ddfast.kernels is missing: install ddfast, or link kernels/ into ddfast/"
else:
    reason = ""
    from ddfast.operators import triton_augment, triton_blocks, triton_complexity, triton_matching  # noqa: F401

    if native.load_cuda():
        from ddfast.operators import cuda_matching  # noqa: F401
if reason:
    backends.absent |= {"triton": reason, "cuda": reason}

__all__ = [
    "augment",
    "class_complexity",
    "class_moments",
    "conv3x3",
    "conv_block",
    "moment_matching",
    "norm_block",
]
