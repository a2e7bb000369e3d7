"""What pyproject.toml cannot say: kernels/ is installed as ddfast.kernels, and csrc/ is compiled where it can be.

DDFAST_NO_EXTENSION=1: pure Python. FORCE_CUDA=1: csrc/cuda/ too, where PyTorch has no CUDA. CXX, CXXFLAGS: as ever.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGES = ["data", "distill", "evaluate", "kernels", "networks", "operators", "recipes", "report"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]
AMX = [*AVX512, "-mamx-tile", "-mamx-bf16", "-mavx512bf16"]
CAPABILITIES = {"portable": []} | ({"avx2": AVX2, "avx512": AVX512} if platform.machine() == "x86_64" else {})
STABLE = (
    "-DTORCH_TARGET_VERSION=0x020b000000000000"  # for PyTorch 2.11 and later, whose pybind11 refuses to be part of it
)
SHARED = ["-std=c++17", "-O3"]
CXX_FLAGS = [*SHARED, "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", *os.environ.get("CXXFLAGS", "").split()]
NVCC_FLAGS = [*SHARED, "-DUSE_CUDA", "-cudart=static", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]
GENCODE = ("80,code=sm_80", "90a,code=sm_90a", "100,code=[sm_100,compute_100]")
NVCC_FLAGS += ["-Xlinker=--no-as-needed", *(f"-gencode=arch=compute_{it}" for it in GENCODE)]
SPEC = importlib.util.find_spec("torch")  # found and not imported: nothing but its headers and libraries is needed
TORCH = Path(SPEC.origin).parent if SPEC and SPEC.origin else None
INCLUDE = ["-isystem", f"{TORCH}/include", "-isystem", sysconfig.get_path("include"), "-Icsrc"]
CXX = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
PROBE = [CXX, *AMX, "-xc++", "-c", "-", "-o", os.devnull]  # whether compiler and assembler know AMX
if CXX and subprocess.run(PROBE, input=b'asm("tilerelease");', capture_output=True).returncode == 0:
    CAPABILITIES["amx"] = AMX
    CXX_FLAGS.append("-DDDFAST_AMX")
NVCC = shutil.which("nvcc", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")
NO_EXTENSION, FORCE_CUDA = (os.environ.get(it, "0") != "0" for it in ("DDFAST_NO_EXTENSION", "FORCE_CUDA"))


def missing(extension: str) -> str | None:
    """Why an extension is not built, None if it can be."""
    reasons = {
        "DDFAST_NO_EXTENSION is set": NO_EXTENSION,
        "PyTorch is not here; install it first, then ddfast with --no-build-isolation": TORCH is None,
        "there is no C++ compiler": CXX is None,
        "there is no nvcc": extension == "ddfast._C_cuda" and NVCC is None,
    }
    return next(filter(reasons.get, reasons), None)


def extensions() -> Iterator[Extension]:
    """ddfast._C, and ddfast._C_cuda where CUDA is meant; loading the former never needs the latter."""
    found = {"ddfast._C": [*Path("csrc").glob("*.cpp"), *Path("csrc/cpu").glob("*.cpp")]}
    if FORCE_CUDA or (TORCH and list(TORCH.glob("lib/libtorch_cuda*"))):
        found["ddfast._C_cuda"] = list(Path("csrc/cuda").glob("*.cu"))
    for name in filter(found.get, found):
        if reason := missing(name):
            print(f"ddfast: {name} is not built: {reason}")
        else:
            yield Extension(name, sorted(map(str, found[name])))


class Build(build_ext):
    """Compiles all at once, and each CPU kernel for every instruction set."""

    def build_extensions(self) -> None:
        self.extensions = [it for it in self.extensions if self.built(it)]

    def built(self, extension: Extension) -> bool:
        target = Path(self.get_ext_fullpath(extension.name))
        jobs = [job for source in extension.sources for job in self.compilations(Path(source))]
        objects = [str(made) for made, _ in jobs]
        link = [CXX, *CXX_FLAGS] if extension.name == "ddfast._C" else [NVCC, *NVCC_FLAGS]
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(self.compile, jobs))
            target.parent.mkdir(parents=True, exist_ok=True)
            libraries = [f"-L{TORCH}/lib", "-ltorch", "-ltorch_cpu"]  # libtorch brings libtorch_cuda if there is one
            subprocess.run([*link, "-shared", *objects, "-o", str(target), *libraries], check=True)
            return True
        except (OSError, subprocess.CalledProcessError):
            print(f"ddfast: {extension.name} is not built: see the compiler's messages above")
            return False

    def compilations(self, source: Path) -> list[tuple[Path, list[str]]]:
        """Every object that comes of a source, with the command that makes it."""
        folder = Path(self.build_temp) / source.with_suffix("")
        compiler = [NVCC, *NVCC_FLAGS] if source.suffix == ".cu" else [CXX, *CXX_FLAGS]
        command = [*compiler, *INCLUDE, "-c", str(source)]
        if source.stem == "bindings":
            return [(folder.with_suffix(".o"), [*command, *self.facts()])]
        command.append(STABLE)
        if source.parent.name == "cpu" and not source.stem.endswith("_op"):
            return [(folder / f"{k}.o", [*command, *v, f"-DDDFAST_ISA={k}"]) for k, v in CAPABILITIES.items()]
        return [(folder.with_suffix(".o"), command)]

    def facts(self) -> list[str]:
        """What build_info() reports, as macros."""
        git = subprocess.run("git rev-parse --short=12 HEAD", shell=True, capture_output=True, text=True)
        facts = {"COMMIT": git.stdout.strip() or "unknown", "ARCHITECTURE": platform.machine()}
        facts |= {"FLAGS": " ".join(CXX_FLAGS), "INSTRUCTION_SETS": " ".join(CAPABILITIES)}
        return [f'-DDDFAST_{name}="{value}"' for name, value in facts.items()]

    def compile(self, job: tuple[Path, list[str]]) -> None:
        """Makes an object, unless the same command made it after the last change of its source and of all headers."""
        target, command = job
        stamp, read = target.with_suffix(".txt"), [Path(command[command.index("-c") + 1]), *Path("csrc").rglob("*.h")]
        changed = max(path.stat().st_mtime for path in read)
        if not stamp.exists() or stamp.read_text() != " ".join(command) or stamp.stat().st_mtime <= changed:
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*command, "-o", str(target)], check=True)
            stamp.write_text(" ".join(command))


setup(
    packages=["ddfast", *(f"ddfast.{name}" for name in PACKAGES)],
    package_dir={"ddfast": "ddfast", "ddfast.kernels": "kernels"},
    ext_modules=list(extensions()),
    cmdclass={"build_ext": Build},
)
