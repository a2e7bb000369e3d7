// SPDX-License-Identifier: Apache-2.0
// ddfast::class_moments.cpp: checks, memory and threads; the arithmetic is in moments.cpp.
#include "moments_plan.h"

#include <algorithm>
#include <tuple>

namespace ddfast {
namespace {

std::tuple<Tensor, Tensor> class_moments(const Tensor& features, const std::optional<Tensor>& offsets,
                                         const std::optional<Tensor>& index, int64_t largest, int64_t classes, bool) {
  const Segments segments(features, offsets, index, largest, classes);
  const Maps maps = maps_of("features", features);
  const int64_t descriptors = maps.a * maps.b, mean_size = descriptors * maps.positions;
  const Dtype dtype = accumulator(features);
  const int64_t item = dtype == Dtype::Double ? 8 : 4, covariance_size = descriptors * descriptors;
  Tensor means = empty(features, {classes, descriptors, maps.positions}, dtype);
  Tensor covariances = empty(features, {classes, descriptors, descriptors}, dtype);
  char* mean = static_cast<char*>(means.mutable_data_ptr());
  char* covariance = static_cast<char*>(covariances.mutable_data_ptr());
  const auto wanted = [&](int64_t k) { return mean_size > 0 && segments.count(k) > 0; };
  for (int64_t k = 0; k < classes; ++k) {
    if (wanted(k)) continue;
    std::fill_n(mean + k * mean_size * item, mean_size * item, char(0));
    std::fill_n(covariance + k * covariance_size * item, covariance_size * item, char(0));
  }
  if (mean_size == 0) return {means, covariances};
  Moments moments({{maps, &segments}}, classes, true, wanted);
  moments.run(
      [&](int64_t k) {
        Finish finish{};
        finish.mean = mean + k * mean_size * item;
        finish.covariance = covariance + k * covariance_size * item;
        return finish;
      },
      [](int64_t, double, double) {});
  return {means, covariances};
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CPU, m) { m.impl("class_moments.cpp", TORCH_BOX(&class_moments)); }

}  // namespace
}  // namespace ddfast
