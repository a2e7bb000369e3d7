// SPDX-License-Identifier: Apache-2.0
// The instructions of Hopper that `moments_hopper.cuh` is written in: bulk copies that arrive at a barrier in shared memory,
// halves in pairs, and the products of a warpgroup. tests/emulated_hopper.cpp has the same functions in C++.
#pragma once

#include <cstdint>

namespace ddfast {
namespace {

#define DDFAST_EACH_4(f, a, i) f(a[i]), f(a[i + 1]), f(a[i + 2]), f(a[i + 3])
#define DDFAST_EACH_8(f, a, i) DDFAST_EACH_4(f, a, i), DDFAST_EACH_4(f, a, i + 4)
#define DDFAST_EACH_64(f, a)                                                                    \
  DDFAST_EACH_8(f, a, 0), DDFAST_EACH_8(f, a, 8), DDFAST_EACH_8(f, a, 16), DDFAST_EACH_8(f, a, 24), \
      DDFAST_EACH_8(f, a, 32), DDFAST_EACH_8(f, a, 40), DDFAST_EACH_8(f, a, 48), DDFAST_EACH_8(f, a, 56)

__device__ inline uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// What this thread wrote to shared memory, bulk copies and products may read after the next barrier of the block.
__device__ inline void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void arrival_init(uint64_t* arrival) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrival)) : "memory");
}

__device__ inline void arrival_expect(uint64_t* arrival, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes)
               : "memory");
}

// A multiple of 16 bytes, from and to addresses that are multiples of 16; it counts for the arrival when it is there.
__device__ inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* arrival) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(arrival))
               : "memory");
}

// Until all bytes of the phase have come; phases have the parities 0, 1, 0, ...
__device__ inline void arrival_wait(uint64_t* arrival, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;\n"
      "}" ::"r"(shared_address(arrival)),
      "r"(parity)
      : "memory");
}

// Two floats to the nearest halves, the first in the lower bits.
__device__ inline uint32_t halves(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

__device__ inline float first_half(uint32_t pair) {
  float value;
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(value) : "r"(pair));
  return value;
}

__device__ inline float second_half(uint32_t pair) {
  float value;
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(value) : "r"(pair));
  return value;
}

__device__ inline uint32_t doubled_halves(uint32_t pair) {
  uint32_t twice;
  asm("add.rn.f16x2 %0, %1, %1;" : "=r"(twice) : "r"(pair));
  return twice;
}

// The larger one of `so_far` and the magnitude, in both places; NaN counts as nothing.
__device__ inline uint32_t larger_halves(uint32_t so_far, uint32_t pair) {
  uint32_t larger;
  asm("{.reg .b32 a; abs.f16x2 a, %2; max.f16x2 %0, %1, a;}" : "=r"(larger) : "r"(so_far), "r"(pair));
  return larger;
}

#define DDFAST_FLOAT(x) "+f"(x)

// Products of the warpgroup may follow: what was written to their registers is there.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// part (64, 128) = [part +] a (64, 16)·b (128, 16)^T, later; a thread has 64 of the sums and 8 of the halves of `a`, and
// neither may be touched before `products_end`.
__device__ inline void multiply(float (&part)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16\n"
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},\n"
      "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n"
      "}"
      : DDFAST_EACH_64(DDFAST_FLOAT, part)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
}

// They are under way, and other work can be done.
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// All products of the warpgroup are done. `a` is named so that its registers are nobody else's until then.
template <int STEP>
__device__ void products_end(float (&part)[64], uint32_t (&a)[STEP][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : DDFAST_EACH_64(DDFAST_FLOAT, part)::"memory");
}

}  // namespace
}  // namespace ddfast
