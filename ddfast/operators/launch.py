"""What every launch of a Triton kernel needs to know of the device, and launches that are planned once for a shape.

Triton's `kernel[grid](...)` looks at every argument of every call: its type, whether an integer is 1 or a multiple of
16, whether a pointer lies on 16 bytes. That takes 30 µs of Python, several times what the launch itself takes. So an
operator makes a plan of its launches out of what does not change from call to call: a `planned` function of `Spec`s
(shapes, strides, dtypes, devices), options and the chip. A `Launch` of the plan goes by Triton's way once for each
device and alignment of its pointers, and from then on straight to the launcher of what Triton compiled.
"""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver as drivers

from ddfast.kernels.tiling import Chip

Planner = TypeVar("Planner", bound=Callable[..., Any])

PLANS = 256  # of an operator: shapes, dtypes and options that it remembers
ALIGNMENTS = 64  # of a launch
KNOWN = r"3\.[6-9]\."  # versions of Triton whose launcher takes what `Launch` gives it


_planners: list[Any] = []


class Spec(NamedTuple):
    """A tensor without its memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def spec(tensor: Tensor) -> Spec:
    return Spec(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def planned(make: Planner) -> Planner:
    """Remembers what `make`, a pure function, made of the PLANS latest of its arguments."""
    remembering = functools.lru_cache(PLANS)(make)
    _planners.append(remembering)
    return remembering  # type: ignore[return-value]


def forget() -> None:
    """Drops all plans: for whoever changes how work is cut while the process runs, as tuning and tests do."""
    for remembering in _planners:
        remembering.cache_clear()


class Launch:
    """A kernel with all that is known of its arguments before there are tensors.

    The kernel's parameters come in this order: tensors, integers (`before`), floats, integers (`after`), constants. The
    dtypes of the tensors, and which of them are None, belong to the plan: they must not change from call to call.
    """

    __slots__ = ("_after", "_before", "_compiled", "_constants", "_grid", "_kernel")

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        before: tuple[int, ...] = (),
        after: tuple[int, ...] = (),
        **constants: Any,
    ) -> None:
        self._kernel, self._grid, self._constants = kernel, grid, constants
        self._before, self._after = before, after
        self._compiled: dict[Any, tuple[Any, ...]] = {}  # by device and alignment

    def __call__(self, *tensors: Tensor | None, floats: tuple[float, ...] = ()) -> None:
        if self._compiled and not self._watched():
            pointers = [None if it is None else it.data_ptr() for it in tensors]
            active = drivers.active
            device = active.get_current_device()
            found = self._compiled.get(_key(device, pointers))
            if found is not None:
                kernel, run, grid, rest = found
                run(
                    *grid, active.get_current_stream(device), kernel.function, kernel.packed_metadata,
                    None, None, None, *pointers, *self._before, *floats, *rest,
                )  # fmt: skip
                return
        arguments = (*tensors, *self._before, *floats, *self._after)
        kernel = self._kernel[self._grid](*arguments, **self._constants)
        if isinstance(kernel, CompiledKernel) and _known():
            names = self._kernel.arg_names[len(arguments) :]
            pointers = [None if it is None else it.data_ptr() for it in tensors]
            if len(self._compiled) >= ALIGNMENTS:
                self._compiled.clear()
            self._compiled[_key(drivers.active.get_current_device(), pointers)] = (
                kernel,
                kernel.run,
                (*self._grid, 1, 1)[:3],
                (*self._after, *(self._constants[name] for name in names)),
            )

    def _watched(self) -> bool:
        """Whether somebody, such as a profiler, wants to be told of launches: Triton's own way tells them."""
        runtime = knobs.runtime
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        chained = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
        return bool(chained or self._kernel.pre_run_hooks or runtime.debug)


def _key(device: int, pointers: list[int | None]) -> Any:
    """The device, and where not all pointers lie on 16 bytes also which of them do: Triton specialises by that."""
    together = 0
    for pointer in pointers:
        if pointer:
            together |= pointer
    return (device, *((pointer or 0) & 15 == 0 for pointer in pointers)) if together & 15 else device


@functools.cache
def _known() -> bool:
    known = re.match(KNOWN, triton.__version__) is not None
    if not known:
        logging.getLogger("ddfast").warning(
            "each launch takes 30 µs more than it need: this is Triton %s, ddfast knows the launchers of 3.6 to 3.9",
            triton.__version__,
        )
    return known


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a CUDA device; for the interpreter, which runs one program after the other, a small H100."""
    if device.type != "cuda":
        return Chip(90, 8)
    properties = torch.cuda.get_device_properties(device)
    name = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    return Chip(10 * properties.major + properties.minor, properties.multi_processor_count, name)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Launches go to the device of the first argument, a tensor, whichever is the current one."""

    @functools.wraps(function)
    def run(first: Tensor, *rest: Any) -> Any:
        device = first.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(first, *rest)
        with torch.cuda.device(device):
            return function(first, *rest)

    return run
