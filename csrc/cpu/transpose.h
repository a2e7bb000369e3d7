// SPDX-License-Identifier: Apache-2.0
// As many registers as one has lanes, transposed where they are.
#pragma once

#include "vector.h"

namespace ddfast::DDFAST_ISA {
namespace {

template <int... L>
struct Sequence {};
template <int N, int... L>
struct UpTo : UpTo<N - 1, N - 1, L...> {};
template <int... L>
struct UpTo<0, L...> {
  using type = Sequence<L...>;
};

// Of two registers, the first H of every 2H lanes of both, and the others.
template <int H, class V, int... L>
inline V lower(V a, V b, Sequence<L...>) {
  return __builtin_shufflevector(a, b, ((L / H) % 2 ? int(sizeof...(L)) + L - H : L)...);
}
template <int H, class V, int... L>
inline V upper(V a, V b, Sequence<L...>) {
  return __builtin_shufflevector(a, b, ((L / H) % 2 ? int(sizeof...(L)) + L : L + H)...);
}

// The transpose of LANES registers.
template <class T, int H = LANES<T> / 2>
inline __attribute__((always_inline)) void transpose(Vec<T>* v) {
  using Every = typename UpTo<LANES<T>>::type;
  if constexpr (H > 0) {
    for (int i = 0; i < LANES<T>; ++i) {
      if (i & H) continue;
      const Vec<T> a = v[i], b = v[i + H];
      v[i] = lower<H>(a, b, Every{});
      v[i + H] = upper<H>(a, b, Every{});
    }
    transpose<T, H / 2>(v);
  }
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
