// SPDX-License-Identifier: Apache-2.0
// Products of packed rows on AMX: what moments_tile.h does, for floats as pairs of bfloat16 (amx.h).
//
// Y (D', L) is split in place: of every 32 columns first hi, then lo, so that its rows are those of a tile A. A tile B
// has columns in pairs, (column / 2, row, column % 2): the transpose of A in units of pairs. It is made of two panels
// at a time, and then multiplied by all that are not before them.
//
// This has not run on a processor with AMX. At D = 128 and 512 columns the products take 27,000 cycles of its unit and
// the transpositions 16,000 of the shuffling port, which overlap in part: 3 to 4 times the speed of AVX-512 is expected
// of the products, and less where packing or memory weigh.
#pragma once

#include "amx.h"
#include "moments_tile.h"

#if defined(__AMX_BF16__)

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int64_t PAIRS_IN_CACHE = 8;  // of panels: 512 KiB of A
constexpr int64_t TURNED_GROUP = 4 * TILE_FLOATS;  // of 32 columns, (hi or lo, panel, 16, 16)

inline void split_rows(float* y, int64_t rows, int64_t count) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t l = 0; l < count; l += 32) split_row(y + r * STRIDE<float> + l);
}

// B of two panels.
inline void turn_panels(const float* y, int64_t count, float* to) {
  for (int64_t l = 0; l < count; l += 32, to += TURNED_GROUP) {
    for (int64_t k = 0; k < 4; ++k) {
      const float* from = y + (k % 2) * TILE_ROWS * STRIDE<float> + l + (k / 2) * 16;
      Vec<float> v[16];
      for (int64_t i = 0; i < 16; ++i) v[i] = load(from + i * STRIDE<float>);
      transpose<float>(v);
      for (int64_t i = 0; i < 16; ++i) store(to + k * TILE_FLOATS + i * 16, v[i]);
    }
  }
}

template <bool DIAGONAL>
inline void multiply_panels(Tiles& tiles, const float* y, const float* turned, int64_t count, float* sums) {
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  for (int64_t l = 0; l < count; l += 32, turned += TURNED_GROUP)
    multiply_halves<DIAGONAL>(tiles, y + l, y + l + 16, TILE_ROWS * STRIDE<float>, STRIDE<float>, turned,
                              turned + 2 * TILE_FLOATS, TILE_FLOATS);
  tiles.store<0>(sums, 16);
  tiles.store<1>(sums + TILE_FLOATS, 16);
  tiles.store<2>(sums + 2 * TILE_FLOATS, 16);
  tiles.store<3>(sums + 3 * TILE_FLOATS, 16);
}

// As for every other T, but that Y is used up. Column i of a tile (j, i) is the lane, as it is there.
inline void add_product(float* y, int64_t panels, int64_t count, float scale, float* tiles, bool fresh, Ahead ahead) {
  constexpr int64_t PAIR = 2 * TILE_ROWS * STRIDE<float>;
  const int64_t pairs = (panels + 1) / 2, total = pairs * (pairs + 1) / 2;
  float* turned = y + pairs * PAIR;
  ahead.at_once = ((ahead.end - ahead.row) * ahead.lines + total - 1) / total;
  split_rows(y, pairs * 2 * TILE_ROWS, count);
  Tiles registers;
  for (int64_t j0 = 0; j0 < pairs; j0 += PAIRS_IN_CACHE) {
    const int64_t j1 = j0 + PAIRS_IN_CACHE < pairs ? j0 + PAIRS_IN_CACHE : pairs;
    for (int64_t i = 0; i < j1; ++i) {
      turn_panels(y + i * PAIR, count, turned);
      for (int64_t j = i > j0 ? i : j0; j < j1; ++j) {
        ahead.step();
        alignas(64) float sums[4 * TILE_FLOATS];
        (i == j ? multiply_panels<true> : multiply_panels<false>)(registers, y + j * PAIR, turned, count, sums);
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t row = 2 * i + k % 2, column = 2 * j + k / 2;
          if (row > column || column == panels) continue;
          float* slot = tiles + tile_index(panels, row, column) * SLOT<float>;
          for (int64_t v = 0; v < TILE_FLOATS; v += 16) {
            const Vec<float> scaled = scale * load(sums + k * TILE_FLOATS + v);
            store(slot + v, fresh ? scaled : load(slot + v) + scaled);
          }
        }
      }
    }
  }
}

// A single tile in full float: b is broadcast, a transposed as it is read.
template <bool>
inline void tile_product(const float* a, const float* b, int64_t stride, int64_t count, Vec<float>* slot) {
  Vec<float> sums[16] = {};
  for (int64_t l = 0; l < count; l += 16) {
    Vec<float> v[16];
    for (int64_t i = 0; i < 16; ++i) v[i] = load(a + i * stride + l);
    transpose<float>(v);
    for (int64_t k = 0; k < 16; ++k)
      for (int64_t j = 0; j < 16; ++j) sums[j] += v[k] * b[j * stride + l + k];
  }
  for (int64_t j = 0; j < 16; ++j) slot[j] = sums[j];
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA

#endif
