// SPDX-License-Identifier: Apache-2.0
// The element types that operators read, for kernels and their callers alike.
#pragma once

#include <cstdint>

namespace ddfast {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

enum class Element { float32, float64, bfloat16, float16 };

// What sums of T are held in.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Calls body(T{}) with the type that `element` names.
#define DDFAST_ELEMENT_SWITCH(element, T, ...)              \
  switch (element) {                                        \
    case ::ddfast::Element::float32: {                      \
      using T = float;                                      \
      __VA_ARGS__                                           \
    } break;                                                \
    case ::ddfast::Element::float64: {                      \
      using T = double;                                     \
      __VA_ARGS__                                           \
    } break;                                                \
    case ::ddfast::Element::bfloat16: {                     \
      using T = ::ddfast::BFloat16;                         \
      __VA_ARGS__                                           \
    } break;                                                \
    case ::ddfast::Element::float16: {                      \
      using T = ::ddfast::Float16;                          \
      __VA_ARGS__                                           \
    } break;                                                \
  }

}  // namespace ddfast
