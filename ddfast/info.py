"""What is here: versions, devices, and which backend each operator would use, with the reason against the others."""

import importlib.util
import platform
from collections.abc import Iterator
from importlib import metadata

import torch

import ddfast
from ddfast.operators import backends, native
from ddfast.operators.backends import BACKENDS, absent, choose, refusal
from ddfast.operators.library import SIGNATURES

_EXTRAS = {
    "plot": ("matplotlib", "PIL"),
    "digits": ("sklearn",),
    "tensorboard": ("tensorboard", "PIL"),
    "images": ("PIL",),
    "torchvision": ("torchvision", "scipy"),
    "huggingface": ("datasets", "PIL"),
}


def info_lines() -> Iterator[str]:
    yield f"ddfast {ddfast.__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"torch {torch.__version__}, triton {_version('triton')}, CUDA {torch.version.cuda or 'not in this PyTorch'}"
    yield f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    yield _native()
    for number in range(torch.cuda.device_count()):
        yield f"cuda:{number}: {torch.cuda.get_device_name(number)}"
    if not torch.cuda.device_count():
        yield "CUDA: no device"
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            yield f"missing: {', '.join(missing)}; pip install 'ddfast[{extra}]'"
    for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        yield f"backends on {name}:"
        device = torch.device(name)
        chosen = {operator: choose(operator, device, None) for operator in SIGNATURES}
        for backend in BACKENDS:
            used = [operator for operator in SIGNATURES if chosen[operator] == backend]
            if used:
                yield f"  {backend} runs {', '.join(used)}"
            yield from (f"  {reason}" for reason in sorted(_refusals(backend, device)))
        if name == "cuda" and refusal("cuda", "moment_matching", device) is None:
            yield f"  moment_matching by {chosen['moment_matching']}: {_origin(device)}"


def _origin(device: torch.device) -> str:
    """Why the backend of moment matching is what it is, where both Triton and CUDA have one."""
    if backends.measured(device):
        return "it was measured to be the faster one on this GPU"
    return "it is predicted to be faster than cuda, and this GPU has no measurement of both"


def _native() -> str:
    if native.module is None:
        cost = "without it a CPU runs the losses in plain PyTorch, slower and in more memory"
        remedy = "with PyTorch and a C++ compiler here: pip install --no-build-isolation ddfast"
        return f"native operators: {absent['cpp']}; {cost}; {remedy}"
    info = native.module.build_info()
    sets = f"{info['in use']} in use of {info['instruction sets']}"
    return f"native operators: {info['compiler']} for {info['architecture']}, {sets}, commit {info['commit']}"


def _refusals(backend: str, device: torch.device) -> set[str]:
    reasons = (refusal(backend, operator, device) for operator in SIGNATURES)
    return {reason for reason in reasons if reason is not None}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
