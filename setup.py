"""What pyproject.toml cannot say: kernels/ is installed as ddfast.kernels, and csrc/ is compiled where it can be.

Environment:
    DDFAST_NO_EXTENSION=1   pure Python
    FORCE_CUDA=1            compile csrc/cuda/ with nvcc although this PyTorch has no CUDA
    CXX, CXXFLAGS           the C++ compiler, and more flags for it
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

X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]
CAPABILITIES = {"portable": [], **({"avx2": AVX2, "avx512": AVX512} if X86 else {})}  # instruction set: its flags

SHARED = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-std=c++17", "-O3"]  # for PyTorch 2.11 and later
CXX_FLAGS = [*SHARED, "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", *os.environ.get("CXXFLAGS", "").split()]
GENCODE = [("80", "sm_80"), ("90a", "sm_90a"), ("100", "sm_100"), ("100", "compute_100")]
NVCC_FLAGS = [*SHARED, "-DUSE_CUDA", "-cudart=static", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]
NVCC_FLAGS += [f"-gencode=arch=compute_{arch},code={code}" for arch, code in GENCODE]

SPEC = importlib.util.find_spec("torch")  # found and not imported: nothing but its headers and libraries is needed
TORCH = Path(SPEC.origin).parent if SPEC and SPEC.origin else None
INCLUDE = ["-isystem", f"{TORCH}/include", "-isystem", sysconfig.get_path("include"), "-Icsrc"]
CXX = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def asked(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def missing(extension: str) -> str | None:
    """Why an extension is not built, None if it can be."""
    if asked("DDFAST_NO_EXTENSION"):
        return "DDFAST_NO_EXTENSION is set"
    if TORCH is None:
        return "PyTorch is not here to build against; install it first, then ddfast with --no-build-isolation"
    if platform.system() != "Linux":
        return f"it is built on Linux alone, and this is {platform.system()}"
    if CXX is None:
        return "there is no C++ compiler"
    return "there is no nvcc" if extension == "ddfast._C_cuda" and NVCC is None else None


def extensions() -> Iterator[Extension]:
    """ddfast._C, and ddfast._C_cuda where CUDA is meant; loading the former never needs the latter."""
    sources = {"ddfast._C": [*Path("csrc").glob("*.cpp"), *Path("csrc/cpu").glob("*.cpp")]}
    if asked("FORCE_CUDA") or (TORCH and list(TORCH.glob("lib/libtorch_cuda*"))):
        sources["ddfast._C_cuda"] = list(Path("csrc/cuda").glob("*.cu"))
    for name, files in sources.items():
        if files and (reason := missing(name)):
            print(f"ddfast: {name} is not built: {reason}")
        elif files:
            yield Extension(name, sorted(map(str, files)))


class Build(build_ext):
    """Compiles all at once, and each CPU kernel for every instruction set."""

    def build_extensions(self) -> None:
        self.extensions = [extension for extension in self.extensions if self.built(extension)]

    def built(self, extension: Extension) -> bool:
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        jobs = [job for source in extension.sources for job in self.compilations(Path(source))]
        cuda = extension.name.endswith("_cuda")
        link = [NVCC, "-cudart=static", "-Xlinker=--no-as-needed"] if cuda else [CXX, *CXX_FLAGS]
        link += ["-shared", *(str(object) for object, _ in jobs), "-o", str(target), f"-L{TORCH}/lib"]
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda job: self.compile(*job), jobs))
            subprocess.run([*link, "-ltorch", "-ltorch_cpu"], check=True)  # libtorch needs libtorch_cuda by itself
        except (OSError, subprocess.CalledProcessError):
            print(f"ddfast: {extension.name} is not built: see the compiler's messages above")
            return False
        return True

    def compilations(self, source: Path) -> list[tuple[Path, list[str]]]:
        """Every object that comes of a source, with the command that makes it."""
        folder = Path(self.build_temp) / source.with_suffix("")
        compiler = [NVCC, *NVCC_FLAGS] if source.suffix == ".cu" else [CXX, *CXX_FLAGS]
        command = [*compiler, *INCLUDE, "-c", str(source)]
        if source.parent.name == "cpu" and not source.stem.endswith("_op"):
            flags = {name: [*more, f"-DDDFAST_ISA={name}"] for name, more in CAPABILITIES.items()}
            return [(folder / f"{name}.o", [*command, *more]) for name, more in flags.items()]
        return [(folder.with_suffix(".o"), [*command, *(self.facts() if source.stem == "bindings" else [])])]

    def facts(self) -> list[str]:
        """What build_info() reports, as macros."""
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        facts = {"COMMIT": done.stdout.strip() or "unknown", "FLAGS": " ".join(CXX_FLAGS)}
        facts |= {"ARCHITECTURE": platform.machine(), "INSTRUCTION_SETS": " ".join(CAPABILITIES)}
        return [f'-DDDFAST_{name}="{value}"' for name, value in facts.items()]

    def compile(self, target: Path, command: list[str]) -> None:
        """Runs the command unless its object is newer than all that it may have been made of, by the same command."""
        stamp, text = target.with_suffix(".txt"), " ".join(command)
        read = [*Path("csrc").rglob("*.h"), Path(command[command.index("-c") + 1])]
        made = target.stat().st_mtime if target.exists() and stamp.exists() and stamp.read_text() == text else 0
        if made > max(path.stat().st_mtime for path in read):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, "-o", str(target)], check=True)
        stamp.write_text(text)


setup(
    packages=["ddfast", *(f"ddfast.{name}" for name in PACKAGES)],
    package_dir={"ddfast": "ddfast", "ddfast.kernels": "kernels"},
    ext_modules=list(extensions()),
    cmdclass={"build_ext": Build},
)
