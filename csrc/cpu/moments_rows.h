// SPDX-License-Identifier: Apache-2.0
// Reading and writing rows of maps of any layout, a few at a time, without ever copying all of them.
//
// A block is some rows at some positions as (row, outer, inner), inner contiguous: (descriptor, position), or (position,
// descriptor) for channels_last maps and for vectors. Rows that already lie so are read in place; others, and those of
// another dtype, go through a small buffer.
#pragma once

#include "moments_tile.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int64_t GROUP = 16;  // rows that are read or written together

// Lanes of a loop over `count` numbers that ends with ever narrower vectors.
template <class T, int L>
struct Narrow {
  using type = typename VectorOf<T, L>::type;
};
template <class T>
struct Narrow<T, 1> {
  using type = T;
};

template <class V, class T>
inline V get(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <class V, class T>
inline void put(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// body(V{}, i) for consecutive i, V a vector of as many numbers as still fit.
template <class T, int L = LANES<T>, class Body>
inline __attribute__((always_inline)) void over(int64_t count, const Body& body, int64_t i = 0) {
  for (; i + L <= count; i += L) body(typename Narrow<T, L>::type{}, i);
  if constexpr (L > 1) {
    if (i < count) over<T, L / 2>(count, body, i);
  }
}

// How maps lie in memory, and how they are read.
struct Layout {
  int64_t descriptors, stride_d;  // stride_d only where it is one for all descriptors,
  bool regular;                   // that is where A and B merge
  bool descriptors_inside;
};

inline Layout layout_of(const Maps& m) {
  Layout at{m.a * m.b, m.b > 1 ? m.stride_b : m.stride_a, m.a == 1 || m.b == 1 || m.stride_a == m.b * m.stride_b, false};
  at.descriptors_inside = m.positions == 1 || (at.regular && at.stride_d == 1 && m.stride_p != 1);
  return at;
}

// The part of each row between two positions.
struct Block {
  Maps maps;
  Layout layout;
  int64_t first, length;  // positions
  int64_t outer, inner;
};

inline Block block_of(const Maps& maps, int64_t first, int64_t length) {
  const Layout layout = layout_of(maps);
  const bool inside = layout.descriptors_inside;
  return {maps, layout, first, length, inside ? length : layout.descriptors, inside ? layout.descriptors : length};
}

template <class S>
inline S* row_of(const Block& b, int64_t row) {
  return static_cast<S*>(b.maps.data) + row * b.maps.stride_n + b.first * b.maps.stride_p;
}

// Whether `inner` is contiguous in memory and of the accumulator's dtype.
template <class S>
inline bool in_place(const Block& b) {
  const int64_t stride = b.layout.descriptors_inside ? b.layout.stride_d : b.maps.stride_p;
  return sizeof(S) >= 4 && b.layout.regular && (stride == 1 || b.inner == 1);
}

inline int64_t outer_stride(const Block& b) {
  return b.layout.descriptors_inside ? b.maps.stride_p : b.layout.stride_d;
}

// Between a run of numbers in memory and one in a buffer.
template <class S, class T>
inline void read_run(const S* from, int64_t stride, T* to, int64_t count) {
  if (stride == 1) return columns<S>(count, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
  for (int64_t i = 0; i < count; ++i) to[i] = load(from + i * stride, Some{1})[0];
}
template <class S, class T>
inline void write_run(S* to, int64_t stride, const T* from, int64_t count) {
  if (stride == 1) return columns<S>(count, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
  for (int64_t i = 0; i < count; ++i) store(to + i * stride, load(from + i, Some{1}), Some{1});
}

// run(offset in memory, stride, offset in the buffer (outer, inner), count) for all of a row's part, in long runs.
template <class Run>
void runs_of(const Block& b, const Run& run) {
  const Maps& m = b.maps;
  const int64_t stride_d = b.layout.stride_d;
  if (b.layout.descriptors_inside && b.layout.regular) {
    if (stride_d == 1 && m.stride_p == b.inner) return run(0, 1, 0, b.outer * b.inner);
    for (int64_t p = 0; p < b.outer; ++p) run(p * m.stride_p, stride_d, p * b.inner, b.inner);
  } else if (b.layout.descriptors_inside) {
    for (int64_t p = 0; p < b.outer; ++p)
      for (int64_t i = 0; i < m.a; ++i)
        run(p * m.stride_p + i * m.stride_a, m.stride_b, p * b.inner + i * m.b, m.b);
  } else if (b.layout.regular && m.stride_p == 1 && stride_d == b.inner) {
    run(0, 1, 0, b.outer * b.inner);
  } else {
    for (int64_t i = 0; i < m.a; ++i)
      for (int64_t j = 0; j < m.b; ++j)
        run(i * m.stride_a + j * m.stride_b, m.stride_p, (i * m.b + j) * b.inner, b.inner);
  }
}

// Up to GROUP rows as they are worked on.
template <class T>
struct Group {
  const T* row[GROUP];
  int64_t count, stride;  // of outer
};

template <class S, class T>
Group<T> read_group(const Block& b, const Rows& rows, int64_t begin, int64_t end, T* buffer) {
  Group<T> group{{}, end - begin, in_place<S>(b) ? outer_stride(b) : b.inner};
  for (int64_t i = begin; i < end; ++i) {
    const S* from = row_of<const S>(b, rows.index ? rows.index[i] : i);
    if (in_place<S>(b)) {
      group.row[i - begin] = reinterpret_cast<const T*>(from);
      continue;
    }
    T* to = buffer + (i - begin) * b.outer * b.inner;
    runs_of(b, [&](int64_t at, int64_t stride, int64_t in, int64_t n) { read_run(from + at, stride, to + in, n); });
    group.row[i - begin] = to;
  }
  return group;
}

// An array (outer, inner) of `stride`, to or from one (inner, outer): what a class has one of, so not worth vectors.
template <class T>
void exchange(const T* from, int64_t outer, int64_t inner, int64_t stride, T* to, int64_t to_stride) {
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) to[i * to_stride + o] = from[o * stride + i];
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
