// SPDX-License-Identifier: Apache-2.0
// Groups of rows, less a pivot, packed for products: Y (D', L) with l = (row, position) innermost; and their sums.
#pragma once

#include "moments_rows.h"

namespace ddfast::DDFAST_ISA {
namespace {

// What is taken off every row, (outer, stride): y = (F − pivot) − drift, the drift only where there is one.
template <class T>
struct Shift {
  const T* pivot;
  const T* drift;
  int64_t stride;
};

// Rows `first` to `first + R`, positions inside: sum += y (outer, stride), and Y = y where PACK.
template <int R, bool PACK, class T>
void sum_rows(const Group<T>& group, int64_t first, const Block& b, const Shift<T>& shift, T* sum, T* y) {
  const T* const* row = group.row + first;
  for (int64_t o = 0; o < b.outer; ++o) {
    const T* pivot = shift.pivot + o * shift.stride;
    T* total = sum + o * shift.stride;
    T* to = y + o * STRIDE<T> + first * b.inner;
    const int64_t at = o * group.stride;
    over<T>(b.inner, [&](auto lanes, int64_t i) {
      using V = decltype(lanes);
      const V p = get<V>(pivot + i);
      V s = get<V>(total + i);
      for (int r = 0; r < R; ++r) {
        const V v = get<V>(row[r] + at + i) - p;
        s += v;
        if constexpr (PACK) put(to + r * b.inner + i, v);
      }
      put(total + i, s);
    });
  }
}

template <bool PACK, class T>
void sum_group(const Group<T>& group, const Block& b, const Shift<T>& shift, T* sum, T* y) {
  int64_t r = 0;
  for (; r + 8 <= group.count; r += 8) sum_rows<8, PACK>(group, r, b, shift, sum, y);
  for (; r + 2 <= group.count; r += 2) sum_rows<2, PACK>(group, r, b, shift, sum, y);
  for (; r < group.count; ++r) sum_rows<1, PACK>(group, r, b, shift, sum, y);
}

// Y = y, positions inside.
template <class T>
void pack_straight(const Group<T>& group, const Block& b, const Shift<T>& shift, int64_t stride, T* y) {
  for (int64_t o = 0; o < b.outer; ++o) {
    for (int64_t r = 0; r < group.count; ++r) {
      const T* from = group.row[r] + o * group.stride;
      T* to = y + o * stride + r * b.inner;
      over<T>(b.inner, [&](auto lanes, int64_t i) {
        using V = decltype(lanes);
        const V centred = get<V>(from + i) - get<V>(shift.pivot + o * shift.stride + i);
        put(to + i, centred - get<V>(shift.drift + o * shift.stride + i));
      });
    }
  }
}

// Y = y, descriptors inside: blocks of LANES descriptors by LANES columns. Writes zeros up to a whole register.
template <class T>
void pack_transposed(const Group<T>& group, const Block& b, const Shift<T>& shift, int64_t stride, T* y) {
  const int64_t columns = group.count * b.outer;
  for (int64_t l0 = 0; l0 < columns; l0 += LANES<T>) {
    const T* from[LANES<T>];
    int64_t off[LANES<T>];
    const int64_t count = columns - l0 < LANES<T> ? columns - l0 : LANES<T>;
    for (int64_t l = 0; l < count; ++l) {
      const int64_t row = (l0 + l) / b.outer, o = (l0 + l) % b.outer;
      from[l] = group.row[row] + o * group.stride;
      off[l] = o * shift.stride;
    }
    int64_t d = 0;
    for (; d + LANES<T> <= b.inner; d += LANES<T>) {
      Vec<T> v[LANES<T>];
      for (int l = 0; l < LANES<T>; ++l) {
        v[l] = Vec<T>{};
        if (l < count) {
          v[l] = load(from[l] + d) - load(shift.pivot + off[l] + d);
          if (shift.drift) v[l] -= load(shift.drift + off[l] + d);
        }
      }
      transpose<T>(v);
      for (int i = 0; i < LANES<T>; ++i) store(y + (d + i) * stride + l0, v[i]);
    }
    for (; d < b.inner; ++d) {
      for (int64_t l = 0; l < LANES<T>; ++l) {
        T v = 0;
        if (l < count) {
          v = from[l][d] - shift.pivot[off[l] + d];
          if (shift.drift) v -= shift.drift[off[l] + d];
        }
        y[d * stride + l0 + l] = v;
      }
    }
  }
}

// Zeros in the columns `begin` to `end` of `rows` rows.
template <class T>
void clear_columns(T* y, int64_t rows, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t r = 0; r < rows && begin < end; ++r)
    __builtin_memset(y + r * stride + begin, 0, (end - begin) * sizeof(T));
}

// Rows of a block that are worked on together: about as much as a first-level cache holds, and where descriptors are
// inside enough for a register of columns.
inline int64_t group_rows(const Block& b, int64_t lanes) {
  const int64_t fit = (1 << 15) / (b.outer * b.inner), columns = (lanes + b.outer - 1) / b.outer;
  const int64_t least = b.layout.descriptors_inside ? columns : 1;
  const int64_t rows = fit > least ? fit : least;
  return rows < GROUP ? rows : GROUP;
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
