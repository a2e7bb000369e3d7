// SPDX-License-Identifier: Apache-2.0
// The gradient of moment matching; the forward pass is in moments.h.
#pragma once

#include "moments.h"

namespace ddfast {

// Some rows of one class: gradient_n = pull·Delta·(F_n − M) + push·(M_s − M_r), where a null gap counts for 0.
struct Gradient {
  Rows rows;
  const Maps* gradient;  // of the shape of the features, with strides of its own
  const void* centers;   // (D, P), M rounded,
  const void* drift;     // and what rounding took off it
  const void* mean_gap;        // (D, P)
  const void* covariance_gap;  // (D, D), Delta
  double pull, push;
  void* scratch;
};

DDFAST_EVERYWHERE(
    int64_t gradient_scratch(Element element, int64_t descriptors, int64_t positions);

    void gradient(const Gradient& g);)

}  // namespace ddfast
