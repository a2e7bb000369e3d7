// SPDX-License-Identifier: Apache-2.0
// From the sums of a class to its moments and their gaps: see moments.cpp for the formulas.
#include "moments_amx.h"

namespace ddfast::DDFAST_ISA {
namespace {

// Adds the arrays of later parts to those of the first that has some; null where none has.
template <class T>
T* merged(const Finish& f, int side) {
  const int64_t size = up(f.descriptors, TILE<T>) * up(f.positions, LANES<T>);
  T* whole = nullptr;
  for (int64_t k = 0; k < f.number; ++k) {
    T* part = static_cast<T*>(f.parts[k].sum[side]);
    if (whole && part)
      for (int64_t i = 0; i < size; ++i) whole[i] += part[i];
    whole = whole ? whole : part;
  }
  return whole;
}

template <class T>
const T* pivot_of(const Finish& f, int side) {
  for (int64_t k = 0; k < f.number; ++k)
    if (f.parts[k].pivot[side]) return static_cast<const T*>(f.parts[k].pivot[side]);
  return nullptr;
}

// The means M = pivot + S/N, of which left and right get S/N; M_s − M_r. Real moments come as O, and may be wider or
// narrower than what the features are summed in.
template <class T, class O>
double finish_mean_as(const Finish& f) {
  using R = decltype(T{} + O{});
  const int64_t width = up(f.positions, LANES<T>), sides = f.rows[1] > 0 ? 2 : 1, positions = f.positions;
  const T *pivot = pivot_of<T>(f, 0), *real_pivot = pivot_of<T>(f, 1);
  const T *sum = merged<T>(f, 0), *real_sum = merged<T>(f, 1);
  const T n = T(f.rows[0]), real_n = T(f.rows[1]);
  T *left = static_cast<T*>(f.left), *right = static_cast<T*>(f.right);
  if (left) {
    const int64_t size = up(f.descriptors, TILE<T>) * sides * width * int64_t(sizeof(T));
    __builtin_memset(left, 0, size);
    __builtin_memset(right, 0, size);
  }
  double squares[8] = {};
  for (int64_t d = 0; d < f.descriptors; ++d) {
    const int64_t in = d * width, out = d * positions, pair = d * sides * width;
    for (int64_t p = 0; left && p < positions; ++p) {
      left[pair + p] = sum[in + p] / n;
      right[pair + p] = -left[pair + p];
    }
    for (int64_t p = 0; left && sides == 2 && p < positions; ++p)
      left[pair + width + p] = right[pair + width + p] = real_sum[in + p] / real_n;
    if (T* mean = static_cast<T*>(f.mean))
      for (int64_t p = 0; p < positions; ++p) mean[out + p] = pivot[in + p] + sum[in + p] / n;
    if (T* drift = static_cast<T*>(f.drift)) {
      for (int64_t p = 0; p < positions; ++p) {  // exactly what rounding took off the sum (Knuth)
        const T a = pivot[in + p], b = sum[in + p] / n, rounded = a + b, back = rounded - a;
        drift[out + p] = (a - (rounded - back)) + (b - back);
      }
    }
    if (!f.squares) continue;
    T* gap = static_cast<T*>(f.mean_gap);
    for (int64_t p = 0; p < positions; ++p) {
      const R own = R(sum[in + p] / n);
      const R between = sides == 2 ? (R(pivot[in + p]) - R(real_pivot[in + p])) + (own - R(real_sum[in + p] / real_n))
                                   : (R(pivot[in + p]) - R(static_cast<const O*>(f.other_mean)[out + p])) + own;
      squares[p & 7] += double(between) * double(between);
      if (gap) gap[out + p] = T(between);
    }
  }
  double total = 0;
  for (double square : squares) total += square;
  return total;
}

// How often the element in each lane of a tile occurs in the whole matrix: twice, but for the diagonal.
template <class T, bool DIAGONAL>
struct Occurs {
  double times[SLOT<T>] = {};

  constexpr Occurs() {
    for (int j = 0; j < TILE<T>; ++j)
      for (int i = 0; i < (DIAGONAL ? j + 1 : TILE<T>); ++i) times[j * TILE<T> + i] = DIAGONAL && i == j ? 1 : 2;
  }
};
template <class T, bool DIAGONAL>
constexpr Occurs<T, DIAGONAL> OCCURS;

template <class T>
double squares_of(const T* tile, const double* times) {
  using Narrow = typename VectorOf<T, LANES<double>>::type;
  Vec<double> sums{};
#pragma GCC unroll 32
  for (int64_t l = 0; l < SLOT<T>; l += LANES<double>) {
    Narrow narrow;
    __builtin_memcpy(&narrow, tile + l, sizeof(narrow));
    const Vec<double> x = __builtin_convertvector(narrow, Vec<double>), factor = load(times + l);
    sums += factor == 0 ? factor : factor * x * x;  // a lane that counts for nothing may hold anything
  }
  return sum<double>(sums);
}

// Sigma = T − (S/N)(S/N)^T, less the other's, and its squares; written on both sides of the diagonal.
template <class T, class O>
double finish_covariance_as(const Finish& f, int64_t begin, int64_t end) {
  using R = decltype(T{} + O{});
  const int64_t n = f.descriptors, panels = up(n, TILE<T>) / TILE<T>, sides = f.rows[1] > 0 ? 2 : 1;
  const int64_t stride = sides * up(f.positions, LANES<T>);
  const T *left = static_cast<const T*>(f.left), *right = static_cast<const T*>(f.right);
  const O* other = static_cast<const O*>(f.other_covariance);
  T* to = static_cast<T*>(f.covariance);
  double squares = 0;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = i; j < panels; ++j) {
      Vec<T> slot[SLOT<T> / LANES<T>];
      tile_product<false>(left + i * TILE<T> * stride, right + j * TILE<T> * stride, stride, stride, slot);
      for (int64_t k = 0; k < f.number; ++k) {
        const T* part = static_cast<const T*>(f.parts[k].tiles) + tile_index(panels, i, j) * SLOT<T>;
        for (int v = 0; v < SLOT<T> / LANES<T>; ++v) slot[v] += load(part + v * LANES<T>);
      }
      T tile[SLOT<T>];
      for (int v = 0; v < SLOT<T> / LANES<T>; ++v) store(tile + v * LANES<T>, slot[v]);
      const int rows = int(n - i * TILE<T> < TILE<T> ? n - i * TILE<T> : TILE<T>);
      const int columns = int(n - j * TILE<T> < TILE<T> ? n - j * TILE<T> : TILE<T>);
      if (other) {
        for (int c = 0; c < columns; ++c)
          for (int r = 0; r < rows; ++r)
            tile[c * TILE<T> + r] = T(R(tile[c * TILE<T> + r]) - R(other[(i * TILE<T> + r) * n + j * TILE<T> + c]));
      }
      squares += squares_of(tile, i == j ? OCCURS<T, true>.times : OCCURS<T, false>.times);
      if (!to) continue;
      T *upper = to + i * TILE<T> * n + j * TILE<T>, *lower = to + j * TILE<T> * n + i * TILE<T>;
      if (i < j && columns == TILE<T>) {
        for (int c = 0; c < TILE<T>; ++c)
          for (int r = 0; r < TILE<T>; ++r) upper[r * n + c] = lower[c * n + r] = tile[c * TILE<T> + r];
      } else {
        for (int c = 0; c < columns; ++c)
          for (int r = 0; r < (i == j ? c + 1 : rows); ++r) upper[r * n + c] = lower[c * n + r] = tile[c * TILE<T> + r];
      }
    }
  }
  return squares;
}

}  // namespace

double finish_mean(const Finish& f) {
  const bool wide = f.other == Element::float64;
  if (f.element == Element::float64) return wide ? finish_mean_as<double, double>(f) : finish_mean_as<double, float>(f);
  return wide ? finish_mean_as<float, double>(f) : finish_mean_as<float, float>(f);
}

double finish_covariance(const Finish& f, int64_t begin, int64_t end) {
  const bool wide = f.other == Element::float64;
  if (f.element == Element::float64)
    return (wide ? finish_covariance_as<double, double> : finish_covariance_as<double, float>)(f, begin, end);
  return (wide ? finish_covariance_as<float, double> : finish_covariance_as<float, float>)(f, begin, end);
}

}  // namespace ddfast::DDFAST_ISA
