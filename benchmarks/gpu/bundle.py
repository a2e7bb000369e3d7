"""What is carried to a machine without network, in one ignored folder: extensions, Triton's cache, and real images.

    python -m benchmarks.gpu bundle [--data FOLDER]     by the Python whose versions the GPU machine has
    python -m benchmarks.gpu bundle --check             unpacks it in another folder, and uses all of it there

FOLDER holds CIFAR-10 as train.npz, test.npz and classes.txt; without it, images that are there already stay. Build it
last: every change of a kernel, of csrc/ or of a network makes a part of it useless.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu import arrival, images
from benchmarks.gpu.arrival import ABOUT, BUNDLE, CACHE, EXTENSIONS, IMAGES, ROOT

MADE = ROOT / "build" / "gpu"  # what is compiled on the way, to be used again
MOST = 60 * 2**20  # bytes of bundle and checkout together
NEEDED = (".cubin", ".json", ".so")  # of a compiled kernel: the texts on the way to it are not read
PARTS = ("extensions", "cache", "images")
ARRIVED = "--arrived"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="for Triton's cache, after which it stays as it is")
    parser.add_argument("--only", nargs="*", default=[], help="of Triton's cache: parts of the names of what is done")
    parser.add_argument("--check", action="store_true")
    parser.add_argument(ARRIVED, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--without", nargs="*", default=[], choices=PARTS, help="parts that stay as they are")
    options = parser.parse_args(arguments)
    if options.arrived:
        return print_use(options.only)
    if options.check:
        return check(BUNDLE, options.only)
    BUNDLE.mkdir(exist_ok=True)
    arrival.link_kernels(ROOT)
    about: dict[str, Any] = json.loads((BUNDLE / ABOUT).read_text()) if (BUNDLE / ABOUT).exists() else {}
    about |= {"commit": _git("rev-parse", "--short", "HEAD").strip(), "versions": versions()}
    if "extensions" not in options.without:
        about["extensions"] = pack_extensions(build_extensions(), BUNDLE / EXTENSIONS)
    if "cache" not in options.without:
        about["cache"] = fill_cache(BUNDLE / CACHE, options.only, options.minutes)
    if options.data and "images" not in options.without:
        about["images"] = images.pack(options.data, BUNDLE / IMAGES)
    (BUNDLE / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    return show_sizes()


def versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("torch", "triton", "numpy")}
    return {"python": platform.python_version(), **found}


def build_extensions() -> list[Path]:
    """Both native halves for this Python and this PyTorch, csrc/cuda for every architecture of setup.py."""
    shutil.rmtree(MADE / "lib", ignore_errors=True)
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", str(MADE / "lib"), "--build-temp", str(MADE / "temp")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"FORCE_CUDA": "1"}, capture_output=True, text=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = [MADE / "lib" / "ddfast" / f"{name}{suffix}" for name in ("_C", "_C_cuda")]
    if done.returncode or not all(path.exists() for path in built):
        raise SystemExit(f"the extensions were not built:\n{(done.stdout + done.stderr)[-4000:]}")
    return built


def pack_extensions(built: Sequence[Path], packed: Path) -> list[str]:
    with tarfile.open(packed, "w:xz", preset=6) as archive:
        for path in built:
            archive.add(path, path.name)
    return [path.name for path in built]


def fill_cache(packed: Path, only: Sequence[str], minutes: float) -> dict[str, Any]:
    """Runs benchmarks/gpu/cache.py in a process of its own, and packs what it compiled."""
    folder = MADE / "triton"
    variables = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.gpu.cache", "--minutes", str(minutes), "--only", *only]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Triton's cache was not filled:\n{(done.stdout + done.stderr)[-4000:]}")
    pack_cache(folder, packed)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: {key: value for key, value in of.items() if key != "missed"} for name, of in found.items()}


def pack_cache(folder: Path, packed: Path) -> None:
    with tarfile.open(packed, "w:xz", preset=6) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and (path.suffix in NEEDED or path.name.startswith("__grp__")):
                archive.add(path, str(path.relative_to(folder)))


def show_sizes() -> int:
    """Prints what travels; 1 where it is too much."""
    carried = {path.name: path.stat().st_size for path in sorted(BUNDLE.iterdir())}
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    checkout = sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())
    for name, size in {**carried, "the checkout": checkout}.items():
        print(f"{size / 2**20:7.2f} MiB  {name}")
    whole = sum(carried.values()) + checkout
    print(f"{whole / 2**20:7.2f} MiB  in all, of {MOST / 2**20:.0f}")
    return int(whole > MOST)


def check(bundle: Path, only: Sequence[str]) -> int:
    """Unpacks bundle and checkout in a folder of another name, and uses them there from a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        root = copy_checkout(Path(temporary) / "elsewhere")
        shutil.copytree(bundle, root / bundle.name)
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_CACHE_DIR")}
        command = [sys.executable, "-m", "benchmarks.gpu", "bundle", ARRIVED, "--only", *only]
        done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    if done.returncode:
        print((done.stdout + done.stderr)[-4000:])
        return 1
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"extensions: {found['native']}, {found['cuda']}; carried: {found['carried']}")
    print(f"images: {found['images']}")
    for name, of in found["chips"].items():
        print(f"{name}: {of['hits']} kernels from the cache, {of['misses']} compiled anew {sorted(set(of['missed']))}")
        for call, error in of["failed"].items():
            print(f"  {call}: {error}")
    bad = any(of["misses"] or not of["hits"] for of in found["chips"].values())
    return int(bad or found["cuda"] != "loads" or found["native"] != "loads")


def copy_checkout(target: Path) -> Path:
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("benchmarks/results"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def print_use(only: Sequence[str]) -> int:
    """What a process in the unpacked checkout finds, as JSON."""
    work = ROOT / "runs" / "gpu" / "check"
    carried = arrival.arrive(BUNDLE, work)
    from benchmarks.gpu import cache  # after the arrival: it imports ddfast

    found = cache.check(only) | {"carried": carried.get("extensions"), "images": None}
    if (work / "data" / "cifar10").exists():
        from ddfast.data import load

        dataset = load(str(work / "data" / "cifar10"))
        found["images"] = {"train": len(dataset.train.labels), "test": len(dataset.test.labels)}
    print(json.dumps(found))
    return 0


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
