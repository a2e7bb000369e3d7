"""What is here: versions, devices, and which backend each operator would use, with the reason against the others."""

import importlib.util
import platform
from collections.abc import Iterator
from importlib import metadata

import torch

import ddfast
from ddfast.operators.backends import BACKENDS, choose, refusal
from ddfast.operators.schemas import SIGNATURES


def info_lines() -> Iterator[str]:
    yield f"ddfast {ddfast.__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"torch {torch.__version__}, triton {_version('triton')}, CUDA {torch.version.cuda or 'not in this PyTorch'}"
    yield f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for number in range(torch.cuda.device_count()):
        yield f"cuda:{number}: {torch.cuda.get_device_name(number)}"
    if not torch.cuda.device_count():
        yield "CUDA: no device"
    for extra, module in (("plot", "matplotlib"), ("plot", "PIL"), ("digits", "sklearn")):
        if importlib.util.find_spec(module) is None:
            yield f"{module} is missing: pip install 'ddfast[{extra}]'"
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        yield f"backends on {device}:"
        for operator in SIGNATURES:
            yield f"  {operator}: {choose(operator, torch.device(device), None)}"
        for backend in BACKENDS:
            reasons = {refusal(backend, operator, torch.device(device)) for operator in SIGNATURES} - {None}
            yield from (f"  not used: {reason}" for reason in sorted(filter(None, reasons)))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
