// SPDX-License-Identifier: Apache-2.0
// What the launch of covariance matching is told; pointers are to device memory.
#pragma once

#include <cstdint>

namespace ddfast {

// One side: features (N, A, B, P) by class, for its pivots; `splits` partials of each class, from `first_split` on.
// Without features the side is its moments: counts (K,), means (K, D, P) and covariances (K, D, D).
struct Side {
  const void* features;
  const int64_t *offsets, *index;  // CSR, or null: class k owns rows k·largest ..
  int64_t largest, splits, first_split;
  int64_t stride_n, stride_a, stride_b, stride_p;
  const int64_t* counts;
  const void *means, *covariances;
  bool doubles;  // what these are, else floats
};

struct Matching {
  Side real, syn;
  const void* sums;      // (splits of both sides, K, D, P), float or double as `T`
  const void* products;  // (splits of both sides, K, tiles, block, block)
  void *share, *centers, *drift, *mean_gap, *covariance_gap;  // what backward needs; null where it does not
  void* squares;     // (2, K, parts), scratch
  unsigned* ticket;  // 0 before the launch and after it
  void *loss, *terms;
  double mean_weight, covariance_weight;
  int64_t classes, descriptors, b, positions;
  int tiles, block, parts;
};

}  // namespace ddfast
