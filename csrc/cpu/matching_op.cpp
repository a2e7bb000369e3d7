// SPDX-License-Identifier: Apache-2.0
// ddfast::moment_matching.cpp, its form against moments and its backward: checks, memory and threads.
#include "matching.h"

#include <cstring>
#include <tuple>

#include "moments_plan.h"

namespace ddfast {
namespace {

using Matched = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// One of the results, an array per class; without elements, and null, where it is not wanted.
struct State {
  Tensor tensor;
  char* data = nullptr;
  int64_t bytes = 0;  // per class

  State(const Tensor& like, bool wanted, int64_t classes, std::initializer_list<int64_t> shape)
      : tensor(make(like, wanted, classes, shape)) {
    if (!wanted) return;
    data = static_cast<char*>(tensor.mutable_data_ptr());
    bytes = tensor.element_size();
    for (int64_t size : shape) bytes *= size;
  }

  static Tensor make(const Tensor& like, bool wanted, int64_t classes, std::initializer_list<int64_t> shape) {
    if (!wanted) return empty(like, {0}, accumulator(like));
    return shape.size() == 0 ? empty(like, {classes}, accumulator(like))
                             : empty(like, {classes, *shape.begin(), *(shape.end() - 1)}, accumulator(like));
  }

  void* at(int64_t k) const { return data ? data + k * bytes : nullptr; }
  void clear(int64_t k) const {
    if (data) std::memset(data + k * bytes, 0, bytes);
  }
};

void put(const Tensor& to, int64_t i, double value) {
  if (to.scalar_type() == Dtype::Double) {
    static_cast<double*>(to.mutable_data_ptr())[i] = value;
  } else {
    static_cast<float*>(to.mutable_data_ptr())[i] = float(value);
  }
}

double get(const Tensor& from, int64_t i) {
  return from.scalar_type() == Dtype::Double ? static_cast<const double*>(from.const_data_ptr())[i]
                                             : static_cast<const float*>(from.const_data_ptr())[i];
}

// The loss, its terms and the state of `schemas.STATE`. Class k has `real_count(k)` real rows; where they are not a
// side, `add_real(k, finish)` says what their moments are.
template <class RealCount, class AddReal>
Matched match(const Tensor& syn, std::vector<Side> sides, double mean_weight, double covariance_weight, bool needs_grad,
              const RealCount& real_count, const AddReal& add_real) {
  const Maps maps = sides[0].maps;
  const Segments& segments = *sides[0].segments;
  const int64_t classes = segments.classes, descriptors = maps.a * maps.b, positions = maps.positions;
  const bool mean = mean_weight != 0, covariance = covariance_weight != 0;
  const State share(syn, needs_grad, classes, {});
  const State centers(syn, needs_grad && covariance, classes, {descriptors, positions});
  const State drift(syn, needs_grad && covariance, classes, {descriptors, positions});
  const State mean_gap(syn, needs_grad && mean, classes, {descriptors, positions});
  const State covariance_gap(syn, needs_grad && covariance, classes, {descriptors, descriptors});
  const bool any = descriptors * positions > 0 && (mean || covariance);
  const auto matched = [&](int64_t k) { return segments.count(k) > 0 && real_count(k) > 0; };
  for (int64_t k = 0; k < classes; ++k) {
    if (needs_grad) put(share.tensor, k, matched(k) ? 1 / double(segments.count(k)) : 0);
    if (matched(k) && any) continue;
    for (const State* state : {&centers, &drift, &mean_gap, &covariance_gap}) state->clear(k);
  }

  std::vector<double> squares(2 * classes);
  if (any) {
    Moments moments(std::move(sides), classes, covariance, matched);
    moments.run(
        [&](int64_t k) {
          Finish finish{};
          finish.mean = centers.at(k);
          finish.drift = drift.at(k);
          finish.squares = mean;
          finish.mean_gap = mean_gap.at(k);
          finish.covariance = covariance_gap.at(k);
          add_real(k, finish);
          return finish;
        },
        [&](int64_t k, double of_mean, double of_covariance) {
          squares[2 * k] = of_mean;
          squares[2 * k + 1] = of_covariance;
        });
  }
  Tensor loss = empty(syn, {}, accumulator(syn)), terms = empty(syn, {2}, accumulator(syn));
  double sums[2] = {};
  for (int64_t i = 0; i < 2 * classes; ++i) sums[i % 2] += squares[i];
  for (int64_t i = 0; i < 2; ++i) put(terms, i, sums[i]);
  put(loss, 0, mean_weight * get(terms, 0) + covariance_weight * get(terms, 1));
  return {loss, terms, share.tensor, centers.tensor, drift.tensor, mean_gap.tensor, covariance_gap.tensor};
}

Matched moment_matching(const Tensor& real, const std::optional<Tensor>& real_offsets,
                        const std::optional<Tensor>& real_index, int64_t real_largest, const Tensor& syn,
                        const std::optional<Tensor>& offsets, const std::optional<Tensor>& index, int64_t largest,
                        int64_t classes, double mean_weight, double covariance_weight, bool, bool needs_grad) {
  const Segments real_segments(real, real_offsets, real_index, real_largest, classes);
  const Segments segments(syn, offsets, index, largest, classes);
  const Maps real_maps = maps_of("real", real), maps = maps_of("syn", syn);
  STD_TORCH_CHECK(real_maps.element == maps.element && real_maps.a == maps.a && real_maps.b == maps.b &&
                      real_maps.positions == maps.positions,
                  "real and syn must have one dtype and the same maps");
  return match(syn, {{maps, &segments}, {real_maps, &real_segments}}, mean_weight, covariance_weight, needs_grad,
               [&](int64_t k) { return real_segments.count(k); }, [](int64_t, Finish&) {});
}

Matched moment_matching_to_moments(const Tensor& counts, const Tensor& means, const Tensor& covariances,
                                   const Tensor& syn, const std::optional<Tensor>& offsets,
                                   const std::optional<Tensor>& index, int64_t largest, int64_t classes,
                                   double mean_weight, double covariance_weight, bool, bool needs_grad) {
  const Segments segments(syn, offsets, index, largest, classes);
  const Maps maps = maps_of("syn", syn);
  const Tensor mean = torch::stable::contiguous(means), covariance = torch::stable::contiguous(covariances);
  const Tensor count = torch::stable::contiguous(counts);
  const int64_t descriptors = maps.a * maps.b;
  STD_TORCH_CHECK(count.scalar_type() == Dtype::Long && count.numel() == classes, "counts must be int64 of shape (K,)");
  STD_TORCH_CHECK(mean.numel() == classes * descriptors * maps.positions, "means must have shape (K, D, P)");
  STD_TORCH_CHECK(covariance.numel() == classes * descriptors * descriptors, "covariances must have shape (K, D, D)");
  const Element other = element("means", mean);
  STD_TORCH_CHECK((other == Element::float32 || other == Element::float64) &&
                      element("covariances", covariance) == other,
                  "means and covariances must both be float32 or both float64");
  const int64_t item = mean.element_size();
  const auto* from = static_cast<const char*>(mean.const_data_ptr());
  const auto* covariance_from = static_cast<const char*>(covariance.const_data_ptr());
  return match(syn, {{maps, &segments}}, mean_weight, covariance_weight, needs_grad,
               [&](int64_t k) { return count.const_data_ptr<int64_t>()[k]; },
               [&](int64_t k, Finish& finish) {
                 finish.other = other;
                 finish.other_mean = from + k * descriptors * maps.positions * item;
                 finish.other_covariance = covariance_from + k * descriptors * descriptors * item;
               });
}

Tensor moment_matching_backward(const Tensor& grad, const Tensor& syn, const std::optional<Tensor>& offsets,
                                const std::optional<Tensor>& index, int64_t largest, int64_t classes,
                                const Tensor& share_, const Tensor& centers_, const Tensor& drift_,
                                const Tensor& mean_gap_, const Tensor& covariance_gap_, double mean_weight,
                                double covariance_weight, bool) {
  const Segments segments(syn, offsets, index, largest, classes);
  Tensor gradient = torch::stable::empty_like(syn);
  const Maps maps = maps_of("syn", syn), to = maps_of("gradient", gradient);
  const int64_t descriptors = maps.a * maps.b, mean_size = descriptors * maps.positions;
  const Tensor share = torch::stable::contiguous(share_), centers = torch::stable::contiguous(centers_);
  const Tensor drift = torch::stable::contiguous(drift_), mean_gap = torch::stable::contiguous(mean_gap_);
  const Tensor covariance_gap = torch::stable::contiguous(covariance_gap_);
  for (const Tensor* state : {&grad, &share, &centers, &drift, &mean_gap, &covariance_gap})
    STD_TORCH_CHECK(state->scalar_type() == accumulator(syn), "the state must have the dtype of sums");
  const auto of = [&](const Tensor& state, bool wanted, int64_t k, int64_t size) -> const void* {
    if (!wanted) return nullptr;
    STD_TORCH_CHECK(state.numel() == classes * size, "the state must be that of the forward pass");
    return static_cast<const char*>(state.const_data_ptr()) + k * size * int64_t(state.element_size());
  };

  std::vector<Gradient> classes_of(classes);
  for (int64_t k = 0; k < classes; ++k) {
    const double scale = get(share, k);
    const bool pull = covariance_weight != 0 && scale != 0, push = mean_weight != 0 && scale != 0;
    classes_of[k] = {{&maps, segments.index, segments.first(k), segments.first(k) + segments.count(k)}, &to,
                     of(centers, pull, k, mean_size), of(drift, pull, k, mean_size), of(mean_gap, push, k, mean_size),
                     of(covariance_gap, pull, k, descriptors * descriptors),
                     4 * covariance_weight * scale * get(grad, 0), 2 * mean_weight * scale * get(grad, 0), nullptr};
  }
  const auto run = DDFAST_DISPATCH(gradient);
  const int64_t bytes = DDFAST_DISPATCH(gradient_scratch)(maps.element, descriptors, maps.positions);
  const int64_t work = mean_size * (covariance_weight != 0 ? 1 + descriptors / 8 : 1);
  parallel(mean_size > 0 ? syn.size(0) : 0, work, bytes, [&](void* scratch, int64_t begin, int64_t end) {
    for (Gradient part : classes_of) {
      part.rows.begin = std::max(part.rows.begin, begin);
      part.rows.end = std::min(part.rows.end, end);
      part.scratch = scratch;
      if (part.rows.begin < part.rows.end) run(part);
    }
  });
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CPU, m) {
  m.impl("moment_matching.cpp", TORCH_BOX(&moment_matching));
  m.impl("moment_matching_to_moments.cpp", TORCH_BOX(&moment_matching_to_moments));
  m.impl("moment_matching_backward.cpp", TORCH_BOX(&moment_matching_backward));
}

}  // namespace
}  // namespace ddfast
