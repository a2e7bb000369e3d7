"""Triton's interpreter with the tensor cores of a GPU: it rounds sums to the nearest, and they truncate them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

GROUP = 8  # terms that an instruction adds to the accumulator at once: of tf32, and half as many as of 16 bits


def toward_zero(x: np.ndarray) -> np.ndarray:
    """float64 to float32."""
    rounded = x.astype(np.float32)
    return np.where(np.abs(rounded.astype(np.float64)) > np.abs(x), np.nextafter(rounded, np.float32(0)), rounded)


def as_tf32(x: np.ndarray) -> np.ndarray:
    """The bits of a float32 that a tensor core reads."""
    return (np.ascontiguousarray(x, np.float32).view(np.int32) & -0x2000).view(np.float32)


def truncated_product(a: np.ndarray, b: np.ndarray, sums: np.ndarray, group: int = GROUP) -> np.ndarray:
    """sums + a·b, where the exact sum of every `group` products is added to the accumulator and truncated."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for k in range(0, a.shape[-1], group):
            sums = toward_zero(sums + a[..., k : k + group] @ b[..., k : k + group, :])
    return sums


@contextmanager
def truncating() -> Iterator[list[int]]:
    """Every `tl.dot` with float32 sums truncates them; yields the lengths of the products that it has seen.

    It cannot see whether a compiler makes an addition that follows part of the product: test_matching_compiled.py does.
    """
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    seen: list[int] = []
    rounded = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if d.data.dtype != np.float32 or precision == ir.INPUT_PRECISION.IEEE:
            return rounded(self, a, b, d, precision, imprecise)
        seen.append(a.data.shape[-1])
        if a.data.dtype != np.float32:
            return TensorHandle(truncated_product(a.data, b.data, d.data, 2 * GROUP), d.dtype.scalar)
        left, right = as_tf32(a.data), as_tf32(b.data)
        sums = d.data
        if precision == ir.INPUT_PRECISION.TF32x3:
            sums = truncated_product(as_tf32(a.data - left), right, sums)
            sums = truncated_product(left, as_tf32(b.data - right), sums)
        return TensorHandle(truncated_product(left, right, sums), d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield seen


def features(rows: int, row: tuple[int, ...], shift: float, seed: int) -> torch.Tensor:
    """What a ReLU leaves, about the same centre for every seed: positive, so that nothing averages a bias away."""
    centre = 0.5 + 0.5 * torch.randn(row, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(rows, *row, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise + centre + shift).relu().float()
