// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set that DDFAST_ISA names, by the vector extensions of GCC and Clang.
//
// Only kernel files include this, those compiled once per instruction set. All of it has internal linkage, as all of a
// kernel file must have but its entry points: the linker keeps one copy of an inline function, and that of AVX-512 must
// not be the one that portable code calls. For the same reason kernel files include nothing of the standard library
// beyond what is free of functions, such as <cstdint>.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "element.h"

namespace ddfast::DDFAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <class T, int COUNT>
struct VectorOf {
  typedef T type __attribute__((vector_size(COUNT * sizeof(T))));
};

// A register of float or double, and how many it holds; of float for half precision too, which is widened as it is read.
template <class T>
constexpr int LANES = BYTES / int(sizeof(Accumulator<T>));
template <class T>
using Vec = typename VectorOf<Accumulator<T>, LANES<T>>::type;

// As many integers, or numbers of half precision, as a register of floats has lanes.
using Ints = VectorOf<int32_t, LANES<float>>::type;
using Words = VectorOf<uint32_t, LANES<float>>::type;
using Halves = VectorOf<uint16_t, LANES<float>>::type;
using Longs = VectorOf<int64_t, LANES<double>>::type;

template <class To, class From>
inline To cast(From from) {  // the same bits
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // and not a sum, which would make 0 of −0
}

// Half precision is widened to float as it is read, and rounded to nearest even as it is written.
inline Vec<float> widen(BFloat16, Halves bits) {
  return cast<Vec<float>>(__builtin_convertvector(bits, Words) << 16);
}

inline Halves narrow(BFloat16, Vec<float> v) {
  const Words bits = cast<Words>(v);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : (rounded & 0) + 0x7fc0, Halves);
}

#if defined(__AVX512F__)
inline Vec<float> widen(Float16, Halves bits) { return cast<Vec<float>>(_mm512_maskz_cvtph_ps(-1, cast<__m256i>(bits))); }
inline Halves narrow(Float16, Vec<float> v) { return cast<Halves>(_mm512_maskz_cvtps_ph(-1, cast<__m512>(v), 0)); }
#elif defined(__F16C__)
inline Vec<float> widen(Float16, Halves bits) { return cast<Vec<float>>(_mm256_cvtph_ps(cast<__m128i>(bits))); }
inline Halves narrow(Float16, Vec<float> v) { return cast<Halves>(_mm256_cvtps_ph(cast<__m256>(v), 0)); }
#else
inline Vec<float> widen(Float16, Halves bits) {
  // Exponent and fraction move to their places in a float, which is 2^112 too small; the largest exponent is inf or NaN.
  const Words wide = __builtin_convertvector(bits, Words);
  const Words magnitude = (wide & 0x7fff) << 13;
  const Words scaled = cast<Words>(cast<Vec<float>>(magnitude) * 0x1p112f);
  const Words finite = (wide & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : scaled;
  return cast<Vec<float>>(finite | ((wide & 0x8000) << 16));
}

inline Halves narrow(Float16, Vec<float> v) {
  const Words bits = cast<Words>(v), magnitude = bits & 0x7fffffff;
  // Below 2^-14 the sum with 0.5 rounds at the place of a subnormal's last bit; above, the fraction is rounded here.
  const Words subnormal = cast<Words>(cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000;
  const Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  Words half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? (half & 0) + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? (half & 0) + 0x7e00 : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000), Halves);
}
#endif

// How many lanes of a register are meant: all, or the first `count` where a row ends.
struct All {};
struct Some {
  int64_t count;
};

// Lanes that are not meant become `value`.
template <class V>
inline V rest(V v, All, float) {
  return v;
}
template <class V>
inline V rest(V v, Some some, float value) {
  for (int64_t i = some.count; i < int64_t(sizeof(v) / sizeof(v[0])); ++i) v[i] = value;
  return v;
}

template <class T>
inline Vec<T> load(const T* from, All = {}) {
  if constexpr (sizeof(T) == 2) {
    Halves bits;
    __builtin_memcpy(&bits, from, sizeof(bits));
    return widen(T{}, bits);
  } else {
    Vec<T> v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
}

template <class T>
inline void store(T* to, Vec<T> v, All = {}) {
  if constexpr (sizeof(T) == 2) {
    const Halves bits = narrow(T{}, v);
    __builtin_memcpy(to, &bits, sizeof(bits));
  } else {
    __builtin_memcpy(to, &v, sizeof(v));
  }
}

// Zeros in the other lanes.
template <class T>
inline Vec<T> load(const T* from, Some some) {
  T lanes[LANES<T>] = {};
  for (int64_t i = 0; i < some.count; ++i) lanes[i] = from[i];
  return load(lanes);
}

template <class T>
inline void store(T* to, Vec<T> v, Some some) {
  T lanes[LANES<T>];
  store(lanes, v);
  for (int64_t i = 0; i < some.count; ++i) to[i] = lanes[i];
}

// Floats as a register of doubles, zeros in the other lanes.
template <class Lanes>
inline Vec<double> widened(const float* from, Lanes lanes) {
  typename VectorOf<float, LANES<double>>::type v{};
  if constexpr (__is_same(Lanes, All)) __builtin_memcpy(&v, from, sizeof(v));
  else for (int64_t i = 0; i < lanes.count; ++i) v[i] = from[i];
  return __builtin_convertvector(v, Vec<double>);
}

// Calls body(j, lanes) for every register of a row of `width` elements.
template <class T, class Body>
inline void columns(int64_t width, const Body& body) {
  int64_t j = 0;
  for (; j + LANES<T> <= width; j += LANES<T>) body(j, All{});
  if (j < width) body(j, Some{width - j});
}

// In a fixed order: halves are added until one lane is left.
template <class T>
inline T sum(Vec<T> v) {
  T lanes[LANES<T>];
  store(lanes, v);
  for (int half = LANES<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class T>
inline T largest(Vec<T> v) {
  T best = v[0];
  for (int i = 1; i < LANES<T>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// exp(x) for x <= 0, to 1 ulp; 0 below log(2^-126), NaN for NaN.
inline Vec<float> exp_of_nonpositive(Vec<float> x) {
  // x = n·log 2 + r with |r| <= log(2) / 2, so exp(x) = 2^n·exp(r). Adding 1.5·2^23 rounds to an integer, and leaves
  // it in the low bits.
  constexpr float LOWEST = -87.33654f, ROUND = 12582912.0f;
  const Vec<float> inside = x < LOWEST ? broadcast(LOWEST) : x;
  const Vec<float> shifted = inside * 1.44269504f + ROUND;
  const Vec<float> n = shifted - ROUND;
  const Vec<float> r = (inside - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = r * 0.00138145964f + 0.00836871709f;
  p = p * r + 0.0416683881f;
  p = p * r + 0.166665206f;
  p = p * r + 0.499999934f;
  p = p * (r * r) + r + 1.0f;
  const Vec<float> power = cast<Vec<float>>((cast<Ints>(shifted) + 127) << 23);
  return x < LOWEST ? Vec<float>{} : p * power;
}

// log(x) for 0 < x < inf, to 1 ulp; NaN for NaN.
inline Vec<float> log_of_positive(Vec<float> x) {
  // x = 2^n·(1 + f) with sqrt(1/2) <= 1 + f < sqrt(2)
  constexpr float SMALLEST = 1.17549435e-38f;
  constexpr int32_t ROOT = 0x3f3504f3;  // sqrt(1/2)
  const Vec<float> normal = x < SMALLEST ? x * 16777216.0f : x;
  const Ints above = cast<Ints>(normal) - ROOT;
  const Vec<float> n = __builtin_convertvector(above >> 23, Vec<float>) - (x < SMALLEST ? broadcast(24.0f) : Vec<float>{});
  const Vec<float> f = cast<Vec<float>>((above & 0x7fffff) + ROOT) - 1.0f;
  Vec<float> p = f * -0.07634431f + 0.127615521f;
  p = p * f - 0.131601955f;
  p = p * f + 0.142017623f;
  p = p * f - 0.166233564f;
  p = p * f + 0.200012267f;
  p = p * f - 0.250008211f;
  p = p * f + 0.333333317f;
  const Vec<float> square = f * f;
  const Vec<float> result = n * 0.693359375f + (f - (0.5f * square - (f * square * p + n * -2.12194440e-4f)));
  return x == x ? result : x;
}

// exp(x) for |x| < 700, to 1e-11.
inline Vec<double> exp_of_moderate(Vec<double> x) {
  constexpr double ROUND = 0x1.8p52;
  constexpr double INVERSE_FACTORIALS[] = {1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                                           1.0 / 24,     1.0 / 6,     1.0 / 2,    1.0,       1.0};
  const Vec<double> shifted = x * 1.44269504088896341 + ROUND;
  const Vec<double> r = x - (shifted - ROUND) * 0.693147180559945309;
  Vec<double> p = r * (1.0 / 3628800);
  for (int i = 0; i < 9; ++i) p = (p + INVERSE_FACTORIALS[i]) * r;
  return (p + INVERSE_FACTORIALS[9]) * cast<Vec<double>>((cast<Longs>(shifted) + 1023) << 52);
}

inline Vec<double> exp_of_nonpositive(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

inline Vec<double> log_of_positive(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
