"""The kernels for AMX where there is none: the same sources, with the tiles in plain C++ (DDFAST_EMULATE_AMX)."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddfast.operators import backends, native

REPOSITORY = Path(__file__).parents[1]
PROCESSOR = Path("/proc/cpuinfo")

pytestmark = [
    pytest.mark.skipif(native.module is None, reason=backends.absent.get("cpp", "")),
    pytest.mark.skipif(
        not PROCESSOR.exists() or "avx512_bf16" not in PROCESSOR.read_text() or shutil.which("g++") is None,
        reason="needs GCC, and AVX-512 with bfloat16 for all but the tiles",
    ),
]

PRODUCTS = """
#include "cpu/matching_amx.h"
#include "cpu/moments_amx.h"

using namespace ddfast::amx;

extern "C" int64_t row_stride() { return STRIDE<float>; }
extern "C" void symmetric(float* y, int64_t panels, int64_t count, float scale, float* tiles, bool fresh) {
  add_product(y, panels, count, scale, tiles, fresh, Ahead{});
}
extern "C" void gradient(const float* delta, int64_t descriptors, const float* y, int64_t count, float* scratch,
                         float* to) {
  multiply_on_tiles(delta, descriptors, y, count, count, scratch, to);
}
"""


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """The products alone, which compile quickly."""
    library = tmp_path_factory.mktemp("amx") / "products.so"
    flags = ["-std=c++17", "-O1", "-march=cooperlake", "-mamx-tile", "-mamx-bf16", "-Wno-psabi", "-Icsrc", "-fPIC"]
    macros = ["-DDDFAST_ISA=amx", "-DDDFAST_AMX", "-DDDFAST_EMULATE_AMX"]
    command = ["g++", *flags, *macros, "-shared", "-xc++", "-", "-o", library]
    subprocess.run(command, input=PRODUCTS, text=True, cwd=REPOSITORY, check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def integer(number):
    return ctypes.c_int64(number)


def product(a, b):
    """What three products of halves make of a @ b, and nothing rounded besides."""
    a_hi, b_hi = a.bfloat16(), b.bfloat16()
    a_lo, b_lo = (a - a_hi).bfloat16(), (b - b_hi).bfloat16()
    return a_hi.double() @ (b_hi.double() + b_lo.double()) + a_lo.double() @ b_hi.double()


def error(actual, exact):
    return (actual.double() - exact).norm() / exact.norm()


@pytest.mark.parametrize("panels", [1, 2, 5, 17, 18])
@pytest.mark.parametrize("count", [32, 96, 512])
def test_symmetric_products(products, panels, count):
    """Tiles (j, i) on and above the diagonal, added to what was there; the sums are rounded as floats are."""
    stride, rows = products.row_stride(), (panels + 1) // 2 * 32
    y = torch.full((rows + 32, stride), torch.nan)
    tiles = torch.full((panels * (panels + 1) // 2, 16, 16), torch.nan)
    expected = torch.zeros(panels * 16, panels * 16, dtype=torch.double)
    for scale, fresh in ((0.5, True), (-0.25, False)):
        y[:rows, :count] = torch.randn(rows, count)
        packed = y[: panels * 16, :count]
        expected += scale * product(packed, packed.T)
        products.symmetric(
            pointer(y), integer(panels), integer(count), ctypes.c_float(scale), pointer(tiles), ctypes.c_bool(fresh)
        )
    blocks = expected.view(panels, 16, panels, 16).transpose(1, 2)
    above = torch.stack([blocks[i, j].T for i in range(panels) for j in range(i, panels)])
    i, j = torch.triu_indices(panels, panels)
    whole = (i != j).nonzero()[:, 0]
    assert error(tiles[whole], above[whole]) < 1e-6 or panels == 1
    diagonal = (i == j).nonzero()[:, 0]
    assert error(tiles[diagonal].tril(), above[diagonal].tril()) < 1e-6


@pytest.mark.parametrize("descriptors", [1, 31, 32, 33, 70])
def test_products_of_the_gradient(products, descriptors):
    rows, count = (descriptors + 31) // 32 * 32, 64
    delta = torch.randn(descriptors, descriptors)
    delta += delta.T.clone()
    y, to = torch.zeros(rows, count), torch.full((rows, count), torch.nan)
    y[:descriptors] = torch.randn(descriptors, count)
    scratch = torch.full((rows * (32 + count),), torch.nan)
    products.gradient(pointer(delta), integer(descriptors), pointer(y), integer(count), pointer(scratch), pointer(to))
    assert error(to[:descriptors], product(delta, y[:descriptors])) < 1e-6
    assert error(to[:descriptors], delta.double() @ y[:descriptors].double()) < 1e-5
    assert not to[descriptors:].any()


@pytest.mark.full
def test_the_losses():
    """All that is asked of every instruction set, and the oracle's tests."""
    folder = REPOSITORY / "build" / "emulate-amx"
    build = [sys.executable, "setup.py", "--quiet", "build"]
    where = ["--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    environment = {**os.environ, "CXX": "g++", "CXXFLAGS": "-DDDFAST_EMULATE_AMX"}
    subprocess.run([*build, *where], env=environment, cwd=REPOSITORY, check=True)
    environment = {**os.environ, "PYTHONPATH": str(folder / "lib"), "PYTHONSAFEPATH": "1", "DDFAST_CAPABILITY": "amx"}
    run = [sys.executable, "-m", "pytest", "-o", f"pythonpath={folder / 'lib'}", "-p", "no:cacheprovider"]
    every = ["tests/test_native_matching.py", "tests/test_native.py", "-k", "amx or threads or classes"]
    oracle = ["tests/test_matching.py", "tests/test_moments.py", "-k", "cpp"]
    for chosen in (every, oracle):
        command = [*run, "-m", "not full", *chosen]
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
