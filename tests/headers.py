"""Compiles what csrc/ includes of PyTorch against another PyTorch's headers, by the commands of setup.py.

    python tests/headers.py FOLDER      FOLDER holds torch/__init__.py and torch/include, of a wheel

The arithmetic of the CPU kernels includes nothing of PyTorch and is left out. csrc/cuda is compiled for one
architecture, where there is nvcc. Exits 1, with the compiler's messages, if anything does not compile.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools  # noqa: F401  patches distutils, which is imported next

from distutils.core import run_setup  # isort: skip

ROOT = Path(__file__).parents[1]


def commands(folder: Path, objects: Path) -> list[list[str]]:
    sys.path.insert(0, str(folder))  # where setup.py finds torch
    os.chdir(ROOT)
    build = run_setup("setup.py", ["-q", "build_ext"], stop_after="commandline").get_command_obj("build_ext")
    build.ensure_finalized()
    build.build_temp = str(objects)
    found = []
    for extension in build.distribution.ext_modules:
        for source in map(Path, extension.sources):
            if source.parent.name == "cpu" and not source.stem.endswith("_op"):
                continue
            ((made, command),) = build.compilations(source)
            if source.suffix == ".cu":
                command = [it for it in command if "gencode" not in it] + ["-gencode=arch=compute_90a,code=sm_90a"]
            else:
                command = [*command, "-fsyntax-only"]
            found.append([*command, "-o", str(made)])
    return found


def main() -> int:
    os.environ["FORCE_CUDA"] = "1"
    with tempfile.TemporaryDirectory() as objects, ThreadPoolExecutor(os.cpu_count()) as pool:
        every = commands(Path(sys.argv[1]).resolve(), Path(objects))
        for command in every:
            Path(command[-1]).parent.mkdir(parents=True, exist_ok=True)
        done = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), every))
    failed = [one for one in done if one.returncode]
    for one in failed:
        print(one.stderr, file=sys.stderr)
    sources = [command[command.index("-c") + 1] for command in every]
    print(f"{len(every) - len(failed)} of {len(every)} compile: {' '.join(sources)}")
    return int(bool(failed) or not every)


if __name__ == "__main__":
    sys.exit(main())
