// SPDX-License-Identifier: Apache-2.0
// The tiles of AMX: eight registers of 16 rows by 64 bytes, products of bfloat16 pairs into float.
//
// A float is taken as hi + lo, each rounded to bfloat16; hi·hi + hi·lo + lo·hi, in sums of float, is 4.4e-6 off
// the product of random matrices. DDFAST_EMULATE_AMX (in CXXFLAGS) does the same arithmetic in the same order without
// the instructions.
#pragma once

#if defined(__AMX_BF16__)

#include "vector.h"

namespace ddfast::DDFAST_ISA {
namespace {

// 32 numbers rounded to bfloat16, as they lie in a row of a tile.
using Pairs = VectorOf<uint16_t, 32>::type;

// What is left of a and b is in them afterwards.
inline Pairs take_bfloat16(Vec<float>& a, Vec<float>& b) {
  const Pairs taken = cast<Pairs>(_mm512_cvtne2ps_pbh(cast<__m512>(b), cast<__m512>(a)));
  Halves halves[2];
  __builtin_memcpy(halves, &taken, sizeof(taken));
  a -= widen(BFloat16{}, halves[0]);
  b -= widen(BFloat16{}, halves[1]);
  return taken;
}

// 32 numbers in place: hi, then lo.
inline void split_row(float* at) {
  Vec<float> a = load(at), b = load(at + 16);
  const Pairs hi = take_bfloat16(a, b), lo = take_bfloat16(a, b);
  __builtin_memcpy(at, &hi, sizeof(hi));
  __builtin_memcpy(at + 16, &lo, sizeof(lo));
}

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t TILE_FLOATS = 16 * 16;

// Configured for as long as this lives. PyTorch's threads run other code too, for which no state is left behind.
// Addresses and strides (in floats) are of rows of 64 bytes.
#if defined(DDFAST_EMULATE_AMX)
struct Tiles {
  float tile[8][16][16];

  template <int N>
  void zero() {
    __builtin_memset(tile[N], 0, sizeof(tile[N]));
  }
  template <int N>
  void load(const float* from, int64_t stride) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) __builtin_memcpy(tile[N][i], from + i * stride, 64);
  }
  template <int N>
  void store(float* to, int64_t stride) const {
    for (int64_t i = 0; i < TILE_ROWS; ++i) __builtin_memcpy(to + i * stride, tile[N][i], 64);
  }
  // Sums of the even and of the odd numbers of a row, which are added to the tile when they are complete.
  template <int C, int A, int B>
  void multiply() {
    for (int i = 0; i < 16; ++i) {
      Vec<float> even{}, odd{}, sum;
      for (int k = 0; k < 16; ++k) {
        const uint32_t pair = cast<uint32_t>(tile[A][i][k]);
        Words other;
        __builtin_memcpy(&other, tile[B][k], sizeof(other));
        even += cast<float>(pair << 16) * cast<Vec<float>>(other << 16);
        odd += cast<float>(pair & 0xffff0000) * cast<Vec<float>>(other & 0xffff0000);
      }
      __builtin_memcpy(&sum, tile[C][i], sizeof(sum));
      sum += even + odd;
      __builtin_memcpy(tile[C][i], &sum, sizeof(sum));
    }
  }
};
#else
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    __asm__ volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Tiles() { __asm__ volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;

  template <int N>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(N));
  }
  template <int N>
  void load(const float* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(N), "r"(from), "r"(stride * 4) : "memory");
  }
  template <int N>
  void store(float* to, int64_t stride) const {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(N), "r"(to), "r"(stride * 4) : "memory");
  }
  // C (16, 16) += A (16, 32)·B, of which row k holds rows 2k and 2k + 1 of a matrix (32, 16), column after column.
  template <int C, int A, int B>
  void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
#endif

// Tiles 0 to 3 (2, 2) += A (2·16, 32)·B (32, 2·16), hi and lo of each; on the diagonal without tile 1, below it.
// 12 products for 8 loads, 8 KiB: 192 cycles of a unit that starts a product every 16.
template <bool DIAGONAL>
inline void multiply_halves(Tiles& tiles, const float* a_hi, const float* a_lo, int64_t a_half, int64_t a_stride,
                            const float* b_hi, const float* b_lo, int64_t b_half) {
  const auto multiply = [&] {
    tiles.multiply<0, 4, 6>();
    if constexpr (!DIAGONAL) tiles.multiply<1, 4, 7>();
    tiles.multiply<2, 5, 6>();
    tiles.multiply<3, 5, 7>();
  };
  tiles.load<4>(a_hi, a_stride);
  tiles.load<5>(a_hi + a_half, a_stride);
  tiles.load<6>(b_lo, 16);
  tiles.load<7>(b_lo + b_half, 16);
  multiply();
  tiles.load<6>(b_hi, 16);
  tiles.load<7>(b_hi + b_half, 16);
  multiply();
  tiles.load<4>(a_lo, a_stride);
  tiles.load<5>(a_lo + a_half, a_stride);
  multiply();
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA

#endif
