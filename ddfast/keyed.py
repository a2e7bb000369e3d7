"""Random numbers as a pure function of (seed, iteration, class, purpose).

Nothing here has a state, so neither the chunks a run is cut into, nor the ranks it is spread over, nor an evaluation
in between can change what is drawn. The numbers are counters hashed with SplitMix64's finaliser (Steele, Lea and
Flood, "Fast Splittable Pseudorandom Number Generators", 2014), in int64 tensor arithmetic that wraps on overflow, so
every device gives the same bits.
"""

import zlib

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The int64 with the bits of `value` modulo 2^64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift: int64's own is arithmetic."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def bits(seed: int, iteration: int | Tensor, classes: Tensor, purpose: str, count: int) -> Tensor:
    """`count` random int64 for every class: (G,) int64 -> (G, count) int64, on the device of `classes`.

    An iteration that is a tensor () int64 on that device gives the same bits; a captured CUDA graph reads it anew.
    """
    state = torch.full_like(classes, _signed(seed))
    for part in (zlib.crc32(purpose.encode()), iteration, classes):
        state = _mix(state + _signed(_STEP) + part)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=classes.device) * _signed(_STEP)
    return _mix(state[:, None] + counter)


def uniform(seed: int, iteration: int, classes: Tensor, purpose: str, count: int) -> Tensor:
    """`count` numbers in [0, 1) for every class: (G,) int64 -> (G, count) float32."""
    return _shift(bits(seed, iteration, classes, purpose, count), 40).to(torch.float32) / (1 << 24)


def key(seed: int, iteration: int, purpose: str) -> int:
    """The seed of a generator for what is drawn once an iteration, such as the weights of its network."""
    return int(bits(seed, iteration, torch.zeros(1, dtype=torch.int64), purpose, 1))


def generator(seed: int, iteration: int, purpose: str, device: torch.device) -> torch.Generator:
    """A generator on `device` with that seed."""
    return torch.Generator(device).manual_seed(key(seed, iteration, purpose))
