"""A Triton driver that claims to be a GPU and launches nothing: what a launch costs the host, where there is no GPU.

    with fake_gpu(H100) as gpu:
        DF.moment_matching(real, syn, ...)      # CPU tensors; kernels compile as they would on an H100
    gpu.launches

Within the context the operators choose Triton for CPU tensors, and a kernel goes the way it goes on a GPU: Triton
specialises it by its arguments, compiles it or finds it in its cache (TRITON_CACHE_DIR), and launches it. Only the
launch itself does nothing, so that no result means anything.

With `launchers=True` Triton's own launcher is compiled as well, against a libcuda.so.1 that is made here and does
nothing. So the time that the launcher takes counts, a cache that is filled this way has the launchers that a GPU
machine would compile, and they load there, because they ask for libcuda.so.1 by name. This needs a C compiler.

It is meant for a process without TRITON_INTERPRET and without a GPU: Triton keeps what it compiled for the fake device.
Triton 3.6 to 3.9.
"""

import ctypes
import functools
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as drivers

from ddfast.kernels.tiling import Chip
from ddfast.operators import backends

H100 = Chip(90, 132, "nvidia-h100-80gb-hbm3")
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have


class FakeDriver:
    """What Triton asks of an active driver; `device` is what it says the current device is."""

    def __init__(self, chip: Chip, launchers: bool) -> None:
        self.chip, self.device, self.stream = chip, 0, 0
        self.loaded: list[str] = []  # names of the kernels
        self.last: tuple[Any, ...] = ()  # what the launcher got: grid, stream, function, metadata, hooks, arguments
        self._stub = _libcuda() if launchers else None
        self._count = 0
        self.utils = _Utils(self, nvidia.CudaUtils() if launchers else None)
        self.launcher_cls = nvidia.CudaLauncher if launchers else self._launcher

    @property
    def launches(self) -> int:
        return self._count if self._stub is None else ctypes.c_int.in_dll(self._stub, "launches").value

    def _launcher(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launched(*arguments: Any) -> None:
            self._count += 1
            self.last = arguments

        return launched

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Utils:
    """Triton's own where launchers are compiled, except what only a GPU could answer."""

    def __init__(self, driver: FakeDriver, own: Any) -> None:
        self._driver, self._own = driver, own

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        self._driver.loaded.append(name)
        number = len(self._driver.loaded)
        return number, number, 64, 0, 1024  # module, function, registers, spills, threads a block may have

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        chip = self._driver.chip
        return {
            "max_shared_mem": SHARED[chip.arch],
            "multiprocessor_count": chip.multiprocessors,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


@contextmanager
def fake_gpu(chip: Chip = H100, *, launchers: bool = False) -> Iterator[FakeDriver]:
    """Triton takes this process for one with that chip, and the operators run on it from CPU tensors."""
    for name in ("augment", "blocks", "complexity", "matching"):  # not imported by a PyTorch without CUDA
        importlib.import_module(f"ddfast.operators.triton_{name}")
    ours = [module for name, module in sys.modules.items() if name.startswith("ddfast.operators")]
    refusal = backends.refusal

    def chip_of(device: torch.device) -> Chip:
        return chip

    def accepted(backend: str, operator: str, device: torch.device) -> str | None:
        here = backend == "triton" and device.type == "cpu" and operator in backends.implemented["triton"]
        return None if here else refusal(backend, operator, device)

    with ExitStack() as stack:
        driver = FakeDriver(chip, launchers)
        stack.enter_context(mock.patch.object(backends, "refusal", accepted))
        stack.enter_context(mock.patch.dict(backends.PREFERENCE, cpu=("triton", *backends.PREFERENCE["cpu"])))
        for module in ours:
            if hasattr(module, "chip_of"):
                stack.enter_context(mock.patch.object(module, "chip_of", chip_of))
        stack.enter_context(mock.patch.object(drivers, "_active", driver))
        yield driver


@functools.cache
def _libcuda() -> ctypes.CDLL:
    """A libcuda.so.1 that has every function Triton asks for, each of which succeeds and does nothing."""
    text = (Path(nvidia.__file__).parent / "driver.c").read_text() + Path(nvidia.__file__).read_text()
    names = sorted(set(re.findall(r"\bcu[A-Z]\w*(?=\s*\()|(?<=\")cu[A-Z]\w*(?=\")", text)) - {"cuLaunchKernelEx"})
    source = "int launches;\nint cuLaunchKernelEx(void) { ++launches; return 0; }\n"
    source += "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    folder = Path(tempfile.mkdtemp(prefix="fake-libcuda-"))
    (folder / "cuda.c").write_text(source)
    path = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), str(folder / "cuda.c")]
    subprocess.run(command, check=True)
    triton.knobs.nvidia.libcuda_path = str(folder)
    return ctypes.CDLL(str(path))  # whoever asks for libcuda.so.1 from now on gets this one
