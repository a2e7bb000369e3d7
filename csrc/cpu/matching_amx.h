// SPDX-License-Identifier: Apache-2.0
// Delta·Y of the gradient on AMX, of floats as pairs of bfloat16 (amx.h).
//
// Delta (D, D) is split 32 rows at a time, of every 32 columns first hi, then lo: tiles A. The rows of Y (D', columns)
// are contracted, so that tiles B are theirs interleaved in pairs, without a transposition.
#pragma once

#include "amx.h"
#include "moments_tile.h"

#if defined(__AMX_BF16__)

namespace ddfast::DDFAST_ISA {
namespace {

// (columns / 32, rows / 32, hi or lo, 2, 16, 16 pairs) of rows and columns in whole 32s.
inline void interleave(const float* y, int64_t stride, int64_t rows, int64_t count, float* to) {
  for (int64_t l = 0; l < count; l += 32) {
    for (int64_t e = 0; e < rows; e += 32, to += 4 * TILE_FLOATS) {
      for (int64_t k = 0; k < 32; ++k) {
        const float* from = y + (e + k / 2 * 2) * stride + l + k % 2 * 16;
        Vec<float> a = load(from), b = load(from + stride);
        for (int64_t part = 0; part < 2; ++part) {
          const Pairs taken = take_bfloat16(a, b);
          Halves halves[2];
          __builtin_memcpy(halves, &taken, sizeof(taken));
          const Words even = __builtin_convertvector(halves[0], Words);
          const Words pairs = even | __builtin_convertvector(halves[1], Words) << 16;
          store(to + (2 * part + k % 2) * TILE_FLOATS + k / 2 * 16, cast<Vec<float>>(pairs));
        }
      }
    }
  }
}

// The rows `d` to `d + 32` of Delta (32, columns), zeros beyond its end.
inline void split_delta(const float* delta, int64_t descriptors, int64_t d, int64_t columns, float* to) {
  for (int64_t r = d; r < d + 32; ++r, to += columns) {
    const int64_t count = r < descriptors ? descriptors : 0;
    __builtin_memcpy(to, delta + (r < descriptors ? r * descriptors : 0), count * sizeof(float));
    __builtin_memset(to + count, 0, (columns - count) * sizeof(float));
    for (int64_t e = 0; e < columns; e += 32) split_row(to + e);
  }
}

// Of Y and of the product (D', stride) D' is a multiple of 32, and the rows from D on are zeros; so is `count`.
inline void multiply_on_tiles(const float* delta, int64_t descriptors, const float* y, int64_t stride, int64_t count,
                              float* scratch, float* to) {
  const int64_t rows = up(descriptors, 32);
  float* interleaved = scratch + 32 * rows;
  interleave(y, stride, rows, count, interleaved);
  Tiles tiles;
  for (int64_t d = 0; d < rows; d += 32) {
    split_delta(delta, descriptors, d, rows, scratch);
    const float* b = interleaved;
    for (int64_t l = 0; l < count; l += 32) {
      tiles.zero<0>();
      tiles.zero<1>();
      tiles.zero<2>();
      tiles.zero<3>();
      for (int64_t e = 0; e < rows; e += 32, b += 4 * TILE_FLOATS)
        multiply_halves<false>(tiles, scratch + e, scratch + e + 16, TILE_ROWS * rows, rows, b, b + 2 * TILE_FLOATS,
                               TILE_FLOATS);
      float* corner = to + d * stride + l;
      tiles.store<0>(corner, stride);
      tiles.store<1>(corner + 16, stride);
      tiles.store<2>(corner + TILE_ROWS * stride, stride);
      tiles.store<3>(corner + TILE_ROWS * stride + 16, stride);
    }
  }
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA

#endif
