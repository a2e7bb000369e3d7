// SPDX-License-Identifier: Apache-2.0
// Means and covariances of one class, and their gaps:
//     S = sum_n (F_n − pivot)           M = pivot + S/N
//     T = sum_n (F_n − pivot)(F_n − pivot)^T / N          Sigma = T − (S/N)(S/N)^T, summed over positions
// The pivot is the mean of the leading rows, so that of T about as much is kept as is taken away, and small classes are
// centred exactly. Sums about one pivot simply add, whoever made them.
#include "moments.h"

#include "moments_amx.h"
#include "moments_pack.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int64_t LEADING = GROUP;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// What `gather` works in; in numbers of T, each a multiple of a cache line.
template <class T>
struct Scratch {
  int64_t packed, buffer, turned;

  Scratch(int64_t descriptors, int64_t positions, bool products) {
    const int64_t length = least(positions, COLUMNS<T>), line = 64 / sizeof(T);
    packed = products ? up(descriptors, ROWS<T>) * STRIDE<T> + TURNED<T> : 0;
    buffer = up(GROUP * descriptors * length, line);
    turned = length * up(descriptors, line);
  }
  int64_t bytes() const { return (packed + buffer + 2 * turned) * int64_t(sizeof(T)); }
};

// The rows' memory, where it is one piece or nearly.
Ahead ahead_of(const Rows& rows, int64_t begin, int64_t end, int64_t item) {
  if (!rows.maps) return {};
  const Maps& m = *rows.maps;
  const int64_t span = (m.a - 1) * m.stride_a + (m.b - 1) * m.stride_b + (m.positions - 1) * m.stride_p + 1;
  if (span > 2 * m.a * m.b * m.positions) return {};
  const int64_t lines = up(span * item, 64) / 64;
  return {static_cast<const char*>(m.data), rows.index, begin, least(end, rows.end), m.stride_n * item, lines};
}

// The mean of the leading rows, 0 where it is not finite: an infinite row shall give an infinite mean and not a NaN.
template <class S, class T>
void find_pivot(const Rows& whole, const Block& b, int64_t stride, T* pivot, T* sum, T* buffer) {
  const int64_t lead = least(whole.end - whole.begin, LEADING), rows = group_rows(b, LANES<T>);
  for (int64_t i = 0; i < lead; i += rows) {
    const int64_t begin = whole.begin + i, end = whole.begin + least(i + rows, lead);
    const Group<T> group = read_group<S>(b, whole, begin, end, buffer);
    sum_group<false>(group, b, {pivot, nullptr, stride}, sum, static_cast<T*>(nullptr));
  }
  for (int64_t o = 0; o < b.outer; ++o) {
    for (int64_t i = o * stride; i < o * stride + b.inner; ++i) {
      const T mean = sum[i] / T(lead);
      pivot[i] = mean - mean == 0 ? mean : 0;
      sum[i] = 0;
    }
  }
}

template <class S>
void gather_as(const Gather& g) {
  using T = Accumulator<S>;
  const Maps& maps = *g.rows.maps;
  const bool products = g.sums.tiles != nullptr;
  const int64_t descriptors = maps.a * maps.b, positions = maps.positions, width = up(positions, LANES<T>);
  const int64_t panels = up(descriptors, TILE<T>) / TILE<T>, length = least(positions, COLUMNS<T>);
  const Scratch<T> scratch(descriptors, positions, products);
  T* packed = static_cast<T*>(g.scratch);
  T* buffer = packed + scratch.packed;
  T* turned = buffer + scratch.buffer;
  T* all_pivot = static_cast<T*>(g.sums.pivot[g.side]);
  T* all_sum = static_cast<T*>(g.sums.sum[g.side]);
  __builtin_memset(all_pivot, 0, panels * TILE<T> * width * sizeof(T));
  __builtin_memset(all_sum, 0, panels * TILE<T> * width * sizeof(T));
  if (products)
    clear_columns(packed + descriptors * STRIDE<T>, up(descriptors, ROWS<T>) - descriptors, STRIDE<T>, 0, STRIDE<T>);

  const int64_t rows = g.rows.end - g.rows.begin, most = COLUMNS<T> / length;
  const int64_t chunks = products ? (rows + most - 1) / most : 1, chunk = (rows + chunks - 1) / chunks;
  bool fresh = g.fresh;
  for (int64_t p = 0; p < positions; p += length) {
    const Block b = block_of(maps, p, least(length, positions - p));
    const bool inside = b.layout.descriptors_inside;
    const int64_t stride = inside ? up(descriptors, LANES<T>) : width, together = group_rows(b, LANES<T>);
    T* pivot = inside ? turned : all_pivot + p;
    T* sum = inside ? turned + scratch.turned : all_sum + p;
    if (inside) __builtin_memset(turned, 0, 2 * scratch.turned * sizeof(T));
    find_pivot<S>(g.whole, b, stride, pivot, sum, buffer);
    const Shift<T> shift{pivot, nullptr, stride};
    for (int64_t first = g.rows.begin; first < g.rows.end; first += chunk) {
      const int64_t last = least(first + chunk, g.rows.end), columns = (last - first) * b.length;
      for (int64_t i = first; i < last; i += together) {
        const Group<T> group = read_group<S>(b, g.rows, i, least(i + together, last), buffer);
        T* to = packed + (i - first) * b.length;
        if (products && !inside) {
          sum_group<true>(group, b, shift, sum, to);
        } else {
          sum_group<false>(group, b, shift, sum, to);
          if (products) pack_transposed(group, b, shift, STRIDE<T>, to);
        }
      }
      if (!products) continue;
      const int64_t count = up(columns, STEP<T>);
      clear_columns(packed, descriptors, STRIDE<T>, columns, count);
      const bool more = last < g.rows.end;
      const Ahead ahead = b.length < positions ? Ahead{}
                          : more ? ahead_of(g.rows, last, last + chunk, sizeof(S))
                                 : ahead_of(g.next, g.next.begin, g.next.begin + most, sizeof(S));
      add_product(packed, panels, count, T(g.scale), static_cast<T*>(g.sums.tiles), fresh, ahead);
      fresh = false;
    }
    if (inside) {
      exchange(pivot, b.outer, b.inner, stride, all_pivot + p, width);
      exchange(sum, b.outer, b.inner, stride, all_sum + p, width);
    }
  }
}

}  // namespace

Sizes moment_sizes(Element element, int64_t descriptors, int64_t positions, bool products) {
  Sizes sizes{};
  DDFAST_ELEMENT_SWITCH(element, S, {
    using T = Accumulator<S>;
    sizes.panels = up(descriptors, TILE<T>) / TILE<T>;
    sizes.array = sizes.panels * TILE<T> * up(positions, LANES<T>) * sizeof(T);
    sizes.tiles = products ? sizes.panels * (sizes.panels + 1) / 2 * SLOT<T> * int64_t(sizeof(T)) : 0;
    sizes.scratch = Scratch<T>(descriptors, positions, products).bytes();
  });
  return sizes;
}

void gather(const Gather& g) { DDFAST_ELEMENT_SWITCH(g.rows.maps->element, S, { gather_as<S>(g); }); }

}  // namespace ddfast::DDFAST_ISA
