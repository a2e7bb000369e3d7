"""A kernel whose one accumulator adds up many tensor-core products: its error shows if they truncate."""

import triton
import triton.language as tl


@triton.jit
def chain(x, out, steps, K: tl.constexpr):
    i, k = tl.arange(0, 128), tl.arange(0, K)
    total = tl.zeros((128, 128), tl.float32)
    for step in range(steps):
        a = tl.load(x + i[:, None] * (steps * K) + step * K + k[None, :])
        total = tl.dot(a, tl.trans(a), total, input_precision="tf32")
    tl.store(out + i[:, None] * 128 + i[None, :], total)
