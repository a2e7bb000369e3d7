// SPDX-License-Identifier: Apache-2.0
// The gradient of moment matching with respect to the synthetic features:
//     dL/dF_n = (4w/N)·Delta·(F_n − M_s) + (2w'/N)·(M_s − M_r)
// The terms through the means cancel. They also take away the rounding of M, which a large mean makes as large as
// F_n − M: so the drift is taken off as well. Delta is symmetric: its rows serve as its columns.
#include "matching.h"

#include "matching_amx.h"
#include "moments_pack.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int64_t BATCH = 256;  // columns of packed rows, (F_n − M) and its product with Delta
template <class T>
constexpr int64_t LINE = BATCH + 64 / sizeof(T);

// A tile of HEIGHT rows by two registers of columns; HEIGHT·2 sums, two columns and a broadcast fit the registers.
constexpr int HEIGHT = BYTES == 64 ? 14 : 6;

template <class T>
struct GradientScratch {
  int64_t rows, packed, product, delta, buffer, turned;

  GradientScratch(int64_t descriptors, int64_t positions) {
    const int64_t length = positions < BATCH ? positions : BATCH, line = 64 / sizeof(T);
    rows = AMX<T> ? up(descriptors, ROWS<T>) : descriptors;
    packed = product = rows * LINE<T>;
    delta = AMX<T> ? rows * (ROWS<T> + BATCH) : up(descriptors * HEIGHT, line);
    buffer = up(GROUP * descriptors * length, line);
    turned = length * up(descriptors, line);
  }
  int64_t numbers() const { return packed + product + delta + buffer + 3 * turned; }
};

// R rows of Delta (descriptors, R) by Y (descriptors, count); count is a multiple of two registers.
template <int R, class T>
void multiply_rows(const T* delta, const T* y, int64_t descriptors, int64_t count, T* to) {
  for (int64_t l = 0; l < count; l += 2 * LANES<T>) {
    Vec<T> sums[R][2] = {};
    for (int64_t e = 0; e < descriptors; ++e) {
      const Vec<T> a = load(y + e * LINE<T> + l), b = load(y + e * LINE<T> + l + LANES<T>);
      for (int i = 0; i < R; ++i) {
        sums[i][0] += delta[e * R + i] * a;
        sums[i][1] += delta[e * R + i] * b;
      }
    }
    for (int i = 0; i < R; ++i) {
      store(to + i * LINE<T> + l, sums[i][0]);
      store(to + i * LINE<T> + l + LANES<T>, sums[i][1]);
    }
  }
}

// Rows `d` to `d + rows` of Delta·Y, of which `rows` is at most R.
template <int R, class T>
void multiply_some(const T* delta, int64_t descriptors, int64_t d, int64_t rows, const T* y, int64_t count, T* packed,
                   T* to) {
  if constexpr (R > 0) {
    if (rows < R) return multiply_some<R - 1>(delta, descriptors, d, rows, y, count, packed, to);
    for (int64_t e = 0; e < descriptors; ++e)
      for (int i = 0; i < R; ++i) packed[e * R + i] = delta[e * descriptors + d + i];
    multiply_rows<R>(packed, y, descriptors, count, to + d * LINE<T>);
  }
}

// Delta·Y in tiles, of nearly equal height where that may be chosen.
template <class T>
void multiply(const T* delta, int64_t descriptors, const T* y, int64_t count, T* packed, T* to) {
  if constexpr (AMX<T>) {
    multiply_on_tiles(delta, descriptors, y, LINE<T>, count, packed, to);
  } else {
    const int64_t tiles = (descriptors + HEIGHT - 1) / HEIGHT;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t d = i * descriptors / tiles, rows = (i + 1) * descriptors / tiles - d;
      multiply_some<HEIGHT>(delta, descriptors, d, rows, y, count, packed, to);
    }
  }
}

// Where a group of rows goes: memory, or a buffer.
template <class T>
struct Target {
  T* row[GROUP];
  int64_t count, stride;  // of outer
};

// target = pull·G + push (outer, stride), positions inside; without G just push.
template <class T>
void unpack_straight(const Target<T>& target, const Block& b, const T* g, T pull, const T* push, int64_t stride) {
  for (int64_t o = 0; o < b.outer; ++o) {
    for (int64_t r = 0; r < target.count; ++r) {
      T* to = target.row[r] + o * target.stride;
      const T* from = g + o * LINE<T> + r * b.inner;
      over<T>(b.inner, [&](auto lanes, int64_t i) {
        using V = decltype(lanes);
        const V pushed = get<V>(push + o * stride + i);
        put(to + i, g ? pull * get<V>(from + i) + pushed : pushed);
      });
    }
  }
}

// The same, descriptors inside.
template <class T>
void unpack_transposed(const Target<T>& target, const Block& b, const T* g, T pull, const T* push, int64_t stride) {
  const int64_t columns = target.count * b.outer;
  for (int64_t l0 = 0; l0 < columns; l0 += LANES<T>) {
    const int64_t count = columns - l0 < LANES<T> ? columns - l0 : LANES<T>;
    for (int64_t d = 0; d < b.inner; d += LANES<T>) {
      const int64_t height = b.inner - d < LANES<T> ? b.inner - d : LANES<T>;
      Vec<T> v[LANES<T>] = {};
      if (g) {
        for (int64_t i = 0; i < height; ++i) v[i] = load(g + (d + i) * LINE<T> + l0);
        transpose<T>(v);
      }
      for (int64_t l = 0; l < count; ++l) {
        const int64_t o = (l0 + l) % b.outer;
        T* to = target.row[(l0 + l) / b.outer] + o * target.stride + d;
        const T* pushed = push + o * stride + d;
        if (height == LANES<T>) {
          store(to, g ? pull * v[l] + load(pushed) : load(pushed));
        } else {
          for (int64_t i = 0; i < height; ++i) to[i] = g ? pull * v[l][i] + pushed[i] : pushed[i];
        }
      }
    }
  }
}

// An array (D, P) of a class in the order of a block; `turned` is where it goes if that is not its own.
template <class T>
const T* in_order(const T* array, const Block& b, T* turned) {
  if (!b.layout.descriptors_inside) return array + b.first;
  const int64_t descriptors = b.layout.descriptors;
  exchange(array + b.first, descriptors, b.length, b.maps.positions, turned, up(descriptors, LANES<T>));
  return turned;
}

inline int64_t order_stride(const Block& b, int64_t lanes) {
  return b.layout.descriptors_inside ? up(b.layout.descriptors, lanes) : b.maps.positions;
}

// push·(M_s − M_r) in the order of a block, zeros without a gap.
template <class T>
void find_push(const T* gap, T push, const Block& b, int64_t stride, T* to) {
  const bool inside = b.layout.descriptors_inside;
  for (int64_t d = 0; d < b.layout.descriptors; ++d)
    for (int64_t p = 0; p < b.length; ++p)
      to[inside ? p * stride + d : d * stride + p] = gap ? push * gap[d * b.maps.positions + b.first + p] : 0;
}

// pull·G + push to the rows `begin` to `end`, of which the first is column 0 of G.
template <class S, class T>
void write_rows(const Rows& rows, int64_t begin, int64_t end, const Block& b, const T* g, T pull, const T* push,
                int64_t stride, T* buffer) {
  const int64_t together = group_rows(b, LANES<T>), row_size = b.outer * b.inner;
  for (int64_t first = begin; first < end; first += together) {
    Target<T> target{{}, end - first < together ? end - first : together, in_place<S>(b) ? outer_stride(b) : b.inner};
    for (int64_t r = 0; r < target.count; ++r) {
      S* row = row_of<S>(b, rows.index ? rows.index[first + r] : first + r);
      target.row[r] = in_place<S>(b) ? reinterpret_cast<T*>(row) : buffer + r * row_size;
    }
    const T* from = g ? g + (first - begin) * b.length : nullptr;
    (b.layout.descriptors_inside ? unpack_transposed<T> : unpack_straight<T>)(target, b, from, pull, push, stride);
    for (int64_t r = 0; r < target.count && !in_place<S>(b); ++r) {
      S* row = row_of<S>(b, rows.index ? rows.index[first + r] : first + r);
      const T* own = target.row[r];
      runs_of(b, [&](int64_t at, int64_t step, int64_t in, int64_t n) { write_run(row + at, step, own + in, n); });
    }
  }
}

template <class S>
void gradient_as(const Gradient& g) {
  using T = Accumulator<S>;
  const Maps& maps = *g.rows.maps;
  const int64_t descriptors = maps.a * maps.b, length = maps.positions < BATCH ? maps.positions : BATCH;
  const GradientScratch<T> scratch(descriptors, maps.positions);
  T* packed = static_cast<T*>(g.scratch);
  T* product = packed + scratch.packed;
  T* delta = product + scratch.product;
  T* buffer = delta + scratch.delta;
  T* turned = buffer + scratch.buffer;
  T* push = turned + 2 * scratch.turned;
  clear_columns(packed + descriptors * LINE<T>, scratch.rows - descriptors, LINE<T>, 0, BATCH);
  for (int64_t p = 0; p < maps.positions; p += length) {
    const int64_t positions = maps.positions - p < length ? maps.positions - p : length;
    const Block in = block_of(maps, p, positions), out = block_of(*g.gradient, p, positions);
    const int64_t stride = out.layout.descriptors_inside ? up(descriptors, LANES<T>) : positions;
    find_push(static_cast<const T*>(g.mean_gap), T(g.push), out, stride, push);
    const int64_t batch = BATCH / positions;
    for (int64_t first = g.rows.begin; first < g.rows.end; first += batch) {
      const int64_t last = first + batch < g.rows.end ? first + batch : g.rows.end;
      if (g.covariance_gap) {
        const Shift<T> shift{in_order(static_cast<const T*>(g.centers), in, turned),
                             in_order(static_cast<const T*>(g.drift), in, turned + scratch.turned),
                             order_stride(in, LANES<T>)};
        const int64_t together = group_rows(in, LANES<T>);
        for (int64_t i = first; i < last; i += together) {
          const int64_t end = i + together < last ? i + together : last;
          const Group<T> group = read_group<S>(in, g.rows, i, end, buffer);
          const auto pack = in.layout.descriptors_inside ? pack_transposed<T> : pack_straight<T>;
          pack(group, in, shift, LINE<T>, packed + (i - first) * positions);
        }
        const int64_t columns = (last - first) * positions, count = up(columns, 2 * LANES<T>);
        clear_columns(packed, descriptors, LINE<T>, columns, count);
        multiply(static_cast<const T*>(g.covariance_gap), descriptors, packed, count, delta, product);
      }
      write_rows<S>(g.rows, first, last, out, g.covariance_gap ? product : nullptr, T(g.pull), push, stride, buffer);
    }
  }
}

}  // namespace

int64_t gradient_scratch(Element element, int64_t descriptors, int64_t positions) {
  DDFAST_ELEMENT_SWITCH(element, S, {
    using T = Accumulator<S>;
    return GradientScratch<T>(descriptors, positions).numbers() * int64_t(sizeof(T));
  });
  return 0;
}

void gradient(const Gradient& g) { DDFAST_ELEMENT_SWITCH(g.rows.maps->element, S, { gradient_as<S>(g); }); }

}  // namespace ddfast::DDFAST_ISA
