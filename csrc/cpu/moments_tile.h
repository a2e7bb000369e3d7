// SPDX-License-Identifier: Apache-2.0
// Products Y·Y^T of packed rows, tile by tile on and above the diagonal.
//
// Y (D', L) has the contracted index l = (row, position) innermost. A tile of I x I outer products keeps one register of
// partial sums per element, over the lanes of l, and adds the lanes up at the end:
//     T[i, j] += scale · sum_l Y[i, l]·Y[j, l]
// so neither broadcasts nor a transposition of maps are needed, and I = 5 wastes little on the diagonal.
#pragma once

#include "moments.h"
#include "transpose.h"

namespace ddfast::DDFAST_ISA {
namespace {

// Whether sums of T are formed by moments_amx.h.
#if defined(__AMX_BF16__)
template <class T>
constexpr bool AMX = sizeof(T) == 4;
#else
template <class T>
constexpr bool AMX = false;
#endif

// TILE² sums and TILE + 1 operands fit the registers, or a tile is one of AMX's.
template <class T>
constexpr int TILE = AMX<T> ? 16 : BYTES == 64 ? 5 : 3;

// Packed rows and their columns are whole multiples of these, the rest of them zeros.
template <class T>
constexpr int64_t ROWS = AMX<T> ? 2 * TILE<T> : TILE<T>;
template <class T>
constexpr int64_t STEP = AMX<T> ? 2 * LANES<T> : LANES<T>;

// Columns of packed rows. As many as keep the cost of adding up lanes small, and a block of 128 rows within a core's
// cache; a row's stride is odd in cache lines, so that the rows of a tile do not fall upon one another.
template <class T>
constexpr int64_t COLUMNS = 2048 / sizeof(T);
template <class T>
constexpr int64_t STRIDE = COLUMNS<T> + 64 / sizeof(T);

// Numbers that a tile takes in memory.
template <class T>
constexpr int64_t SLOT = (TILE<T> * TILE<T> + LANES<T> - 1) / LANES<T> * LANES<T>;

// Numbers behind the packed rows that a product works in.
template <class T>
constexpr int64_t TURNED = AMX<T> ? ROWS<T> * COLUMNS<T> : 0;

constexpr int64_t PANELS_IN_CACHE = 26;

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline int64_t tile_index(int64_t panels, int64_t i, int64_t j) { return i * panels - i * (i - 1) / 2 + (j - i); }

// Of every 2H lanes the first H from a, the others from b: in place, and with the halves of each exchanged.
template <int H, class V, int... L>
inline V in_place(V a, V b, Sequence<L...>) {
  return __builtin_shufflevector(a, b, ((L / H) % 2 ? int(sizeof...(L)) + L : L)...);
}
template <int H, class V, int... L>
inline V exchanged(V a, V b, Sequence<L...>) {
  return __builtin_shufflevector(a, b, ((L / H) % 2 ? int(sizeof...(L)) + L - H : L + H)...);
}

// The sums over the lanes of `N` registers, in the lanes of one.
template <class T, int N, int H>
inline __attribute__((always_inline)) Vec<T> lane_sums(Vec<T>* v) {
  if constexpr (H == 0) {
    return v[0];
  } else {
    using Every = typename UpTo<LANES<T>>::type;
    constexpr int LEFT = N < H ? N : H;
#pragma GCC unroll 32
    for (int i = 0; i < LEFT; ++i) {
      const Vec<T> other = v[i + H < N ? i + H : i];
      v[i] = in_place<H>(v[i], other, Every{}) + exchanged<H>(v[i], other, Every{});
    }
    return lane_sums<T, LEFT, H / 2>(v);
  }
}

template <class T, int FIRST = 0>
inline __attribute__((always_inline)) void tile_sums(Vec<T>* sums, Vec<T>* slot) {
  constexpr int LEFT = TILE<T> * TILE<T> - FIRST;
  if constexpr (LEFT > 0) {
    slot[FIRST / LANES<T>] = lane_sums<T, (LEFT < LANES<T> ? LEFT : LANES<T>), LANES<T> / 2>(sums + FIRST);
    tile_sums<T, FIRST + LANES<T>>(sums, slot);
  }
}

// One tile over `count` columns, a multiple of LANES; element (i, j) in lane j·TILE + i. On the diagonal i <= j alone,
// and something in the other lanes.
template <bool DIAGONAL, class T>
inline void tile_product(const T* a, const T* b, int64_t stride, int64_t count, Vec<T>* slot) {
  Vec<T> sums[TILE<T> * TILE<T>] = {};
  for (int64_t l = 0; l < count; l += LANES<T>) {
    Vec<T> x[TILE<T>];
#pragma GCC unroll 32
    for (int i = 0; i < TILE<T>; ++i) x[i] = load(a + i * stride + l);
#pragma GCC unroll 32
    for (int j = 0; j < TILE<T>; ++j) {
      const Vec<T> y = load(b + j * stride + l);
#pragma GCC unroll 32
      for (int i = 0; i < (DIAGONAL ? j + 1 : TILE<T>); ++i) sums[j * TILE<T> + i] += x[i] * y;
    }
  }
  tile_sums<T>(sums, slot);
}

// Rows to be read next, a few cache lines with every tile, so that memory is waited for behind arithmetic.
struct Ahead {
  const char* base = nullptr;
  const int64_t* index = nullptr;
  int64_t row = 0, end = 0;        // of what is left
  int64_t stride = 0, lines = 0;   // of a row
  int64_t line = 0, at_once = 0;

  inline void step() {
    for (int64_t left = at_once; left > 0 && row < end;) {
      const char* from = base + (index ? index[row] : row) * stride;
      const int64_t stop = line + left < lines ? line + left : lines;
      left -= stop - line;
      for (; line < stop; ++line) __builtin_prefetch(from + line * 64, 0, 1);
      if (line == lines) line = 0, ++row;
    }
  }
};

// T = T + scale·Y·Y^T, or without T's old value where it is fresh.
template <class T>
void add_product(const T* y, int64_t panels, int64_t count, T scale, T* tiles, bool fresh, Ahead ahead) {
  constexpr int64_t PANEL = TILE<T> * STRIDE<T>;
  const int64_t total = panels * (panels + 1) / 2;
  ahead.at_once = ((ahead.end - ahead.row) * ahead.lines + total - 1) / total;
  for (int64_t j0 = 0; j0 < panels; j0 += PANELS_IN_CACHE) {
    const int64_t j1 = j0 + PANELS_IN_CACHE < panels ? j0 + PANELS_IN_CACHE : panels;
    for (int64_t i = 0; i < j1; ++i) {
      for (int64_t j = i > j0 ? i : j0; j < j1; ++j) {
        ahead.step();
        Vec<T> sums[SLOT<T> / LANES<T>];
        if (i == j) {
          tile_product<true>(y + i * PANEL, y + j * PANEL, STRIDE<T>, count, sums);
        } else {
          tile_product<false>(y + i * PANEL, y + j * PANEL, STRIDE<T>, count, sums);
        }
        T* slot = tiles + tile_index(panels, i, j) * SLOT<T>;
        for (int v = 0; v < SLOT<T> / LANES<T>; ++v) {
          const Vec<T> scaled = scale * sums[v];
          store(slot + v * LANES<T>, fresh ? scaled : load(slot + v * LANES<T>) + scaled);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
