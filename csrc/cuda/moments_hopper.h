// SPDX-License-Identifier: Apache-2.0
// What the launch of the moments on Hopper is told; pointers are to device memory.
#pragma once

#include <cstdint>

namespace ddfast {

// One side: rows of (C, P) floats without gaps, by class; `splits` programs share the rows of a class, `rows` each.
struct Rows {
  const float* features;
  const int64_t *offsets, *index;  // CSR, or null: class k owns rows k·largest ..
  int64_t largest, rows, splits, stride;
};

struct Moments {
  Rows real, syn;
  float* sums;      // (splits of both sides, K, C, P)
  float* products;  // (splits of both sides, K, 1, C, C)
  int* ticket;      // or null: set to 0 for the launch that follows
  int64_t classes;
};

}  // namespace ddfast
