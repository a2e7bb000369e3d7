"""Random numbers as a pure function of (seed, iteration, class, purpose).

Nothing here has a state, so neither the chunks a run is cut into, nor the ranks it is spread over, nor an evaluation
in between can change what is drawn. The numbers are counters hashed with SplitMix64's finaliser (Steele, Lea and
Flood, "Fast Splittable Pseudorandom Number Generators", 2014), in int64 tensor arithmetic that wraps on overflow, so
every device gives the same bits.
"""

import zlib
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15

Number = TypeVar("Number", int, Tensor)


def _signed(value: int) -> int:
    """The int64 with the bits of `value` modulo 2^64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _wrapped(x: Number) -> Number:
    """An integer cut to int64; the elements of a tensor are already."""
    return _signed(x) if isinstance(x, int) else x


def _shift(x: Number, by: int) -> Number:
    """Logical right shift: int64's own is arithmetic."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Number) -> Number:
    x = _wrapped((x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9))
    x = _wrapped((x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB))
    return x ^ _shift(x, 31)


def _state(seed: int, *parts: int | Tensor) -> int | Tensor:
    """What the parts of a key are hashed to: an integer as long as they are integers, which calls no operator."""
    state: Any = _signed(seed)
    for part in parts:
        state = _mix(_wrapped(_wrapped(state + _signed(_STEP)) + part))
    return state


def bits(seed: int, iteration: int | Tensor, classes: Tensor, purpose: str, count: int) -> Tensor:
    """`count` random int64 for every class: (G,) int64 -> (G, count) int64, on the device of `classes`.

    An iteration that is a tensor () int64 on that device gives the same bits; a captured CUDA graph reads it anew. Many
    iterations (T, 1) give those of each at once: (T, G, count).
    """
    state = _state(seed, zlib.crc32(purpose.encode()), iteration, classes)
    assert isinstance(state, Tensor)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=classes.device) * _signed(_STEP)
    return _mix(state[..., None] + counter)


def uniform(seed: int, iteration: int | Tensor, classes: Tensor, purpose: str, count: int) -> Tensor:
    """`count` numbers in [0, 1) for every class: (G,) int64 -> (G, count) float32, or more as in `bits`."""
    return _shift(bits(seed, iteration, classes, purpose, count), 40).to(torch.float32) / (1 << 24)


def integers(seed: int, iteration: int, purpose: str, count: int) -> list[int]:
    """The `bits` of class 0, for what the host draws once an iteration: no operator of PyTorch's is called."""
    state = _state(seed, zlib.crc32(purpose.encode()), iteration, 0)
    assert isinstance(state, int)
    return [_mix(_signed(state + number * _STEP)) for number in range(1, count + 1)]


def choice(seed: int, iteration: int, purpose: str, count: int) -> int:
    """One of {0 .. count - 1}: the first number of `uniform` for class 0, times `count` in float32."""
    (drawn,) = integers(seed, iteration, purpose, 1)
    return int(np.float32(_shift(drawn, 40) / (1 << 24)) * np.float32(count))


def key(seed: int, iteration: int, purpose: str) -> int:
    """The seed of a generator for what is drawn once an iteration, such as the weights of its network."""
    return integers(seed, iteration, purpose, 1)[0]


def generator(seed: int, iteration: int, purpose: str, device: torch.device) -> torch.Generator:
    """A generator on `device` with that seed."""
    return torch.Generator(device).manual_seed(key(seed, iteration, purpose))
