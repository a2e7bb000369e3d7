"""The ways that a ConvNet's first block can go on a GPU, counted from what is compiled for it: no GPU is needed.

    python -m benchmarks.block_variants [--chips H100] [--precisions half tf32 float32] [--layouts nchw]

A row is a kernel of a way: fma multiplies and adds tap by tap, product uses tensor cores. Instructions are those of the
whole kernel and of its loop over tiles, inputs or channels; `issue` is how long a chip at its usual clock issues all of
them for --images images, and `bytes` how long its memory moves what the operator reads and writes. A block takes the
longer of the two at the least. The last row, plain, has the bytes of a convolution that writes its map, and of a
norm_block that reads it. Exits 1 if a kernel spills or uses the stack.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch

from benchmarks import calls
from benchmarks.kernels import CHIPS, Compiled, recorded
from ddfast.operators import triton_blocks

CLOCK = {"A100": 1.41e9, "H100": 1.755e9, "B200": 1.9e9}  # 1/s, when busy
MEMORY = {"A100": 1.4e12, "H100": 3.0e12, "B200": 7e12}  # bytes/s of a copy
ITEM = {"half": 2, "tf32": 4, "float32": 4}
OUTPUTS, SIDE = 128, 32
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.]*)(.*)")
KINDS = ("HGMMA", "HMMA", "UTCHMMA", "FFMA", "FADD", "FMUL", "LDG", "STG", "LDS", "STS", "SHFL", "BAR", "IMAD", "ISETP")


def parsed(sass: str) -> list[tuple[int, str, str]]:
    """Address, instruction and operands of every line up to the last exit."""
    lines = [(int(at, 16), name, rest) for at, name, rest in LINE.findall(sass)]
    return [line for line in lines if line[1].split(".")[0] != "NOP"]


def loops(lines: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """(first, last) addresses of every loop: a branch back to what came before it, and not to itself."""
    found = []
    for at, name, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < at:
            found.append((int(target[1], 16), at))
    return found


def rounds(built: Compiled) -> tuple[int, int]:
    """How often a kernel's loops turn, the outer and the inner: over tiles, blocks of channels, lines of taps."""
    given = built.launch.arguments
    if built.launch.kernel.__name__ == "tap_products":
        return -(-OUTPUTS // int(given["CHANNELS"])) // int(given["splits"]), 3 * int(given["inputs"])
    if built.launch.kernel.__name__ == "image_gradient":
        return int(given["INPUTS"]), int(given["splits"])
    return (int(given["tiles"]) if given["TERMS"] else 3 * int(given["inputs"])), 1


def issued(built: Compiled) -> tuple[Counter[str], int, int]:
    """Instructions by kind, how many are in loops, and how many a warp issues."""
    lines = parsed(built._dump("-sass"))
    spans = loops(lines)
    kinds = Counter(name.split(".")[0] for _, name, _ in lines)
    outer, inner = rounds(built)
    depths = [sum(first <= at <= last for first, last in spans) for at, _, _ in lines]
    each = sum((1, outer, outer * inner)[min(depth, 2)] for depth in depths)
    return kinds, sum(depth > 0 for depth in depths), each


def variants(chip: str, precision: str, layout: str, images: int) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each is a failure."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if precision == "tf32" else "ieee"  # type: ignore[attr-defined]
    dtype, memory, item = torch.bfloat16 if precision == "half" else torch.float32, MEMORY[chip], ITEM[precision]
    pixels, label = SIDE * SIDE, f"{chip} {precision} {layout}"
    for way in ("fma", "product"):
        with recorded(CHIPS[chip]) as found, mock.patch.object(triton_blocks, "conv_path", return_value=way):
            for call in calls._conv(3, SIDE, 1, dtype, LAYOUTS[layout]):
                call()
        for launch in found:
            built = launch.compile(CHIPS[chip].arch)
            kinds, inside, each = issued(built)
            total = launch.programs * images / calls.IMAGES * launch.warps * each
            issue = 1e6 * total / (4 * CHIPS[chip].multiprocessors * CLOCK[chip])
            name = launch.kernel.__name__
            moved = images * item * (3 * pixels + OUTPUTS * pixels // 4)
            if name in ("tap_products", "image_gradient"):
                moved = images * 4 * 27 * pixels
            usage = built.usage
            cells = (
                *(label, way, name, launch.warps, usage["REG"], usage["STACK"] + usage["LOCAL"], built.blocks),
                *(kinds.total(), inside, " ".join(f"{kind} {kinds[kind]}" for kind in KINDS if kinds[kind])),
                *(f"{issue:.0f}", f"{1e6 * moved / memory:.0f}"),
            )
            yield f"| {' | '.join(map(str, cells))} |", bool(usage["STACK"] or usage["LOCAL"])
    moved = images * item * (3 * pixels + OUTPUTS * pixels * 2 + OUTPUTS * pixels // 4)
    yield f"| {label} | plain | forward |  |  |  |  |  |  |  |  | {1e6 * moved / memory:.0f} |", False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="*", default=["H100"], choices=list(CHIPS))
    parser.add_argument("--precisions", nargs="*", default=list(ITEM), choices=list(ITEM))
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--images", type=int, default=2560)
    options = parser.parse_args()
    print(
        "| case | way | kernel | warps | registers | stack | blocks | all | in loops | by kind | issue, µs | bytes, µs|"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|")
    failures = 0
    for chip in options.chips:
        for precision in options.precisions:
            for layout in options.layouts:
                for line, failed in variants(chip, precision, layout, options.images):
                    print(line, flush=True)
                    failures += failed
    print(f"{failures} kernels use the stack")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
