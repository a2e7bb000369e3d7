"""What this machine can do, measured in the run that uses it: a copy's rate and a matrix product's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.clock import clock_of


@dataclass(frozen=True)
class Ceilings:
    copy: float  # bytes read and written a second
    float32: float  # operations a second of a float32 product
    tf32: float | None = None  # ... and of one on tensor cores, on CUDA
    bf16: float | None = None

    def products(self, symmetric: int, general: int) -> float:
        """The seconds of products at float32 accuracy.

        Split into TF32 halves a product takes three: hi·hi, hi·lo and lo·hi. Those of X·X^T, of which `symmetric`
        counts one half, take as many: half of hi·hi, and the whole of hi·lo, whose transpose lo·hi is.
        """
        plain = (symmetric + general) / self.float32
        return plain if self.tf32 is None else min(plain, 3 * (symmetric + general) / self.tf32)


def measure_ceilings(device: torch.device, quick: bool = False) -> Ceilings:
    cuda = device.type == "cuda"
    elements, side = (1 << 29, 8192) if cuda else (1 << 26, 2048)  # 2 GiB, 256 MiB: far beyond any cache
    if quick:
        elements, side = 1 << 16, 128
    copy = 2 * 4 * elements / _copy_seconds(device, elements)
    operations = 2 * side**3
    float32 = operations / _product_seconds(device, side, torch.float32)
    if not cuda:
        return Ceilings(copy, float32)
    with _tf32():
        tf32 = operations / _product_seconds(device, side, torch.float32)
    return Ceilings(copy, float32, tf32, operations / _product_seconds(device, side, torch.bfloat16))


def _copy_seconds(device: torch.device, elements: int) -> float:
    source, target = torch.randn(elements, device=device), torch.empty(elements, device=device)
    return clock_of(device).fastest(lambda: target.copy_(source))


def _product_seconds(device: torch.device, side: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))  # zeros would run faster
    result = torch.empty_like(a)
    return clock_of(device).fastest(lambda: torch.mm(a, b, out=result))


@contextmanager
def _tf32() -> Iterator[None]:
    flags = torch.backends.cuda.matmul
    before = flags.fp32_precision
    flags.fp32_precision = "tf32"
    try:
        yield
    finally:
        flags.fp32_precision = before
