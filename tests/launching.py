"""What `test_launch.py` asks about launches, in a process of its own: a fake GPU, and no interpreter.

`python launching.py` prints a JSON object of observations, by name.
"""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.runtime.jit import JITFunction

import ddfast
import ddfast.functional as DF
from benchmarks.fake_driver import FakeDriver, fake_gpu
from ddfast.augment import STRATEGY, tabulate, transform
from ddfast.kernels.augment import augment_kernel
from ddfast.operators import conv_block, launch, norm_block

ARGUMENTS = 9  # of the launcher, before those of the kernel: grid, stream, function, metadata and hooks


def operators(dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], Any]]:
    """A call of each public function, forward and backward."""
    k, n, m = 2, 3, 5
    one, other = (ddfast.ClassSegments.from_labels(torch.arange(k * it) % k) for it in (n, m))
    real, syn = torch.randn(k * m, 16, 4, 4, dtype=dtype), torch.randn(k * n, 16, 4, 4, dtype=dtype).requires_grad_()
    rows = torch.randn(k * n, 16, dtype=dtype).requires_grad_()
    images = torch.randn(k, n, 3, 8, 8, dtype=dtype).requires_grad_()
    table = tabulate(torch.rand(k, 4), STRATEGY, (8, 8))
    maps = torch.randn(n, 16, 8, 8, dtype=dtype).requires_grad_()
    affine = [torch.randn(16, dtype=dtype).requires_grad_() for _ in "12"]
    kernel, frozen = torch.randn(16, 3, 3, 3, dtype=dtype), torch.randn(16, dtype=dtype)

    def matching() -> torch.Tensor:
        return DF.moment_matching(real, syn, other, one)

    def to_moments() -> torch.Tensor:
        return DF.moment_matching(ddfast.ClassMoments.from_features(real, other), syn, syn_segments=one)

    def differentiated(function: Callable[[], torch.Tensor], *sources: torch.Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function().sum(), sources)

    return {
        "moment_matching": differentiated(matching, syn),
        "moment_matching to moments": differentiated(to_moments, syn),
        "class_complexity": differentiated(lambda: DF.class_complexity(rows, one), rows),
        "augment": differentiated(lambda: transform(images, table), images),
        "norm_block": differentiated(lambda: norm_block(maps, *affine, eps=1e-5, relu=True, pool=True), maps, *affine),
        "conv_block": differentiated(
            lambda: conv_block(images[0], kernel, frozen, frozen, padding=1, eps=1e-5), images
        ),
    }


def work_of_a_call(gpu: FakeDriver, call: Callable[[], Any]) -> dict[str, int]:
    """Launches of a call, how many of them went through Triton's binder, and plans that were made."""
    bound, run = [0], JITFunction.run

    def counted(*args: Any, **options: Any) -> Any:
        bound[0] += 1
        return run(*args, **options)

    launches, plans = gpu.launches, planned()
    with mock.patch.object(JITFunction, "run", counted):
        call()
    return {"launches": gpu.launches - launches, "bound": bound[0], "plans": planned() - plans}


def planned() -> int:
    return sum(it.cache_info().misses for it in launch._planners)


def both_ways(gpu: FakeDriver, calls: list[Callable[[], Any]]) -> dict[str, Any]:
    """Kernels whose launcher gets something else from a plan than from Triton, and how many launches were compared."""
    planned_way, wrong, compared = launch.Launch.__call__, [], [0]

    def twice(self: launch.Launch, *tensors: Any, **floats: Any) -> None:
        planned_way(self, *tensors, **floats)
        if not self._compiled:
            wrong.append(f"{self._kernel.__name__} is not planned")
        planned_way(self, *tensors, **floats)
        quick = gpu.last
        kept, self._compiled = self._compiled, {}
        planned_way(self, *tensors, **floats)
        slow = tuple(it.data_ptr() if isinstance(it, torch.Tensor) else it for it in gpu.last)
        self._compiled = kept
        compared[0] += 1
        hooks = slice(6, ARGUMENTS)  # chains without links from Triton, None from a plan
        if (quick[:6], quick[ARGUMENTS:]) != (slow[:6], slow[ARGUMENTS:]) or quick[hooks] != (None, None, None):
            wrong.append(self._kernel.__name__)

    with mock.patch.object(launch.Launch, "__call__", twice):
        for call in calls:
            call()
    return {"wrong": wrong, "compared": compared[0]}


def augmented(gpu: FakeDriver, images: torch.Tensor) -> tuple[Any, ...]:
    """What the launcher gets for the augmentation of these images: the function, then the kernel's arguments."""
    table = torch.zeros(len(images), 6, dtype=torch.float64)
    transform(images, table)
    return gpu.last[4], *gpu.last[ARGUMENTS:]


def variants(gpu: FakeDriver) -> dict[str, Any]:
    """The same shape, but otherwise not the same."""
    memory = torch.zeros(2 * 3 * 3 * 8 * 8 + 1)
    images, shifted = (memory[at:][: 2 * 3 * 3 * 64].view(2, 3, 3, 8, 8) for at in (0, 1))
    wide = images.double()
    last = images.movedim(2, -1).contiguous().movedim(-1, 2)
    seen: dict[str, Any] = {"strides": list(last.stride())}
    for _ in range(2):  # before and after there are plans of the others
        for name, given in {"plain": images, "shifted": shifted, "double": wide, "last": last}.items():
            function, *arguments = augmented(gpu, given)
            seen.setdefault(name, []).append({"function": function, "strides": arguments[8:13]})
        gpu.device, before = 1, gpu.device
        seen.setdefault("device", []).append({"function": augmented(gpu, images)[0]})
        gpu.device = before
    return seen


def bounds(gpu: FakeDriver) -> dict[str, Any]:
    table = torch.zeros(1, 6, dtype=torch.float64)
    with mock.patch.object(JITFunction, "run"):  # only planned, not compiled
        for width in range(1, launch.PLANS + 50):
            transform(torch.zeros(1, 1, 1, 1, width), table)
    caches = [it.cache_info() for it in launch._planners]
    return {"plans": max(it.currsize for it in caches), "most": {it.maxsize for it in caches} == {launch.PLANS}}


def alignments(gpu: FakeDriver) -> int:
    """How many compiled kernels one launch knows after more alignments and devices than it may remember."""
    images, table = torch.zeros(1, 1, 1, 8, 8), torch.zeros(1, 6, dtype=torch.float64)
    out = torch.zeros_like(images)
    sizes = (1, 1, 1, 8, 8, *images.stride())
    given = launch.Launch(augment_kernel, (1, 1), sizes, TRANSPOSE=False, PIXELS=64, num_warps=4)
    for device in range(launch.ALIGNMENTS + 10):
        gpu.device = device
        given(images, table, out)
    gpu.device = 0
    return len(given._compiled)


def watched(gpu: FakeDriver, call: Callable[[], Any]) -> dict[str, Any]:
    """How a planned call goes while a profiler listens: what the launcher gives its hook, and how often it launches."""
    told: list[str] = []

    def hook(metadata: Any) -> None:
        told.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(hook)
    work = work_of_a_call(gpu, call)
    metadata, enter = gpu.last[6:8]
    enter(metadata)  # which the fake launcher leaves to us
    knobs.runtime.launch_enter_hook.remove(hook)
    return work | {"told": told, "afterwards": work_of_a_call(gpu, call)["bound"]}


def in_threads(call: Callable[[], Any]) -> list[str]:
    errors: list[str] = []

    def run() -> None:
        try:
            for _ in range(20):
                call()
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def unknown_version(gpu: FakeDriver, call: Callable[[], Any]) -> dict[str, Any]:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ddfast").addHandler(handler)
    launch.forget()
    launch._known.cache_clear()
    with mock.patch.object(launch, "KNOWN", "nothing"):
        call()
        work = work_of_a_call(gpu, call)
    launch._known.cache_clear()
    return work | {"said": records}


def main() -> None:
    with fake_gpu() as gpu:
        calls = operators()
        found: dict[str, Any] = {"first": {}, "second": {}}
        for name, call in calls.items():
            found["first"][name] = work_of_a_call(gpu, call)
            found["second"][name] = work_of_a_call(gpu, call)
        found["both ways"] = both_ways(gpu, [*calls.values(), operators(torch.float64)["augment"]])
        found["variants"] = variants(gpu)
        gpu.stream = 7
        calls["augment"]()
        found["stream"] = gpu.last[3]
        gpu.stream = 0
        found["hooked"] = watched(gpu, calls["augment"])
        found["threads"] = in_threads(calls["augment"])
        found["alignments"] = alignments(gpu)
        found["unknown"] = unknown_version(gpu, calls["augment"])
        found["bounds"] = bounds(gpu)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
