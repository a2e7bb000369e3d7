// SPDX-License-Identifier: Apache-2.0
// ddfast::class_complexity.cpp and its backward: checks, memory and threads; the arithmetic is in complexity.cpp.
#include "complexity.h"

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace ddfast {
namespace {

Segments segments_of(const Tensor& features, const std::optional<Tensor>& offsets, const std::optional<Tensor>& index,
                     int64_t largest, int64_t classes) {
  STD_TORCH_CHECK(features.dim() == 2, "features must have shape (N, E)");
  return Segments(features, offsets, index, largest, classes);
}

// Each class in chunks of at most 128 rows and about 64 Ki elements.
struct Plan {
  std::vector<Chunk> chunks;
  std::vector<int64_t> first_chunk;
  int64_t work = 0;  // elements of the largest chunk

  Plan(const Segments& segments, int64_t width) {
    const int64_t most = std::clamp<int64_t>((1 << 16) / std::max<int64_t>(width, 1), 1, 128);
    first_chunk.reserve(segments.classes + 1);
    for (int64_t k = 0; k < segments.classes; ++k) {
      first_chunk.push_back(int64_t(chunks.size()));
      const int64_t end = segments.first(k) + segments.count(k);
      for (int64_t i = segments.first(k); i < end; i += most) chunks.push_back({k, i, std::min(i + most, end)});
    }
    first_chunk.push_back(int64_t(chunks.size()));
    work = std::min(segments.largest, most) * width;
  }

  int64_t size() const { return int64_t(chunks.size()); }
};

// Features (N, E), as the kernels read them.
ComplexityRows rows_of(const Tensor& features, const Segments& segments, const Plan& plan) {
  return {features.const_data_ptr(), element("features", features), features.stride(0), features.stride(1),
          features.size(1), segments.index, plan.chunks.data()};
}

ComplexityOptions options_of(const Tensor& features, double centralization, double cmi, std::optional<double> alpha,
                             double beta, const std::string& reduction) {
  const double share = reduction == "batchmean" ? 1.0 / double(std::max<int64_t>(features.size(0), 1)) : 1.0;
  return {centralization, cmi * share, alpha.value_or(0), beta, alpha.has_value()};
}

// Where there are classes enough, each as a whole, while it is in cache; else one after another in all their chunks. The
// sums are the same.
void run(ComplexityForward to, const Plan& plan, const Segments& segments, int64_t row_bytes) {
  const auto sums = DDFAST_DISPATCH(complexity_sums);
  const auto means = DDFAST_DISPATCH(complexity_means);
  const auto distances = DDFAST_DISPATCH(complexity_distances);
  const auto pulls = DDFAST_DISPATCH(complexity_pulls);
  const int64_t classes = segments.classes;
  if (plan.size() <= classes || classes >= 2 * int64_t(torch::stable::get_num_threads())) {
    constexpr int64_t CACHE = 512 << 10;
    to.keeps = to.options.cmi != 0 && segments.largest * row_bytes <= CACHE;
    const int64_t scratch_rows = to.keeps ? 2 + segments.largest : 3;
    parallel(classes, segments.largest * to.rows.width, scratch_rows * row_bytes,
                 [&](void* scratch, int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k) {
                     sums(to, scratch, to.first_chunk[k], to.first_chunk[k + 1]);
                     means(to, k, k + 1);
                     distances(to, scratch, to.first_chunk[k], to.first_chunk[k + 1]);
                     pulls(to, k, k + 1);
                   }
                 });
    return;
  }
  auto over_chunks = [&](auto step) {
    parallel(plan.size(), plan.work, 3 * row_bytes,
                 [&](void* scratch, int64_t begin, int64_t end) { step(to, scratch, begin, end); });
  };
  over_chunks(sums);
  means(to, 0, classes);
  over_chunks(distances);
  pulls(to, 0, classes);
}

template <class A>
void write(Tensor& tensor, int64_t i, double value) {
  static_cast<A*>(tensor.mutable_data_ptr())[i] = A(value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> class_complexity(
    const Tensor& features, const std::optional<Tensor>& offsets, const std::optional<Tensor>& index, int64_t largest,
    int64_t classes, double centralization, double cmi, std::optional<double> alpha, double beta,
    StringHandle reduction_text, bool needs_grad) {
  const std::string reduction = text(reduction_text);
  const Segments segments = segments_of(features, offsets, index, largest, classes);
  const Plan plan(segments, features.size(1));
  const ComplexityRows rows = rows_of(features, segments, plan);
  const ComplexityOptions options = options_of(features, centralization, cmi, alpha, beta, reduction);
  const Dtype dtype = accumulator(features);
  const int64_t row_bytes = rows.width * (dtype == Dtype::Double ? 8 : 4);

  auto state = [&](double weight) {
    return needs_grad && weight != 0 ? empty(features, {classes, rows.width}, dtype) : empty(features, {0}, dtype);
  };
  Tensor centers = state(centralization), drift = state(centralization), log_q = state(cmi);
  const bool centralizes = centralization != 0, informs = cmi != 0;
  int64_t bytes = 0;
  const auto take = [&](bool wanted, int64_t more) { return wanted ? (bytes += more) - more : 0; };
  const int64_t own_centers = take(centralizes && !needs_grad, classes * row_bytes);
  const int64_t own_log_q = take(informs && !needs_grad, classes * row_bytes);
  const int64_t centre_parts = take(centralizes, plan.size() * row_bytes);
  const int64_t q_parts = take(informs, plan.size() * row_bytes);
  const int64_t maxima = take(informs, features.size(0) * 8), totals = take(informs, features.size(0) * 8);
  const Memory held = memory(bytes);
  const auto at = [&](int64_t place) { return static_cast<char*>(held.get()) + place; };
  std::vector<double> spread_parts(plan.size()), kl_parts(plan.size());
  ComplexityForward to{rows, options, plan.first_chunk.data(), needs_grad, false};
  if (centralizes) {
    to.centers = needs_grad ? centers.mutable_data_ptr() : at(own_centers);
    to.drift = drift.mutable_data_ptr();
    to.centre_parts = at(centre_parts);
  }
  if (informs) {
    to.log_q = needs_grad ? log_q.mutable_data_ptr() : at(own_log_q);
    to.q_parts = at(q_parts);
    to.maxima = at(maxima);
    to.totals = at(totals);
  }
  to.spread_parts = spread_parts.data();
  to.kl_parts = kl_parts.data();
  run(to, plan, segments, row_bytes);

  const bool per_class = reduction == "none";
  Tensor loss = per_class ? empty(features, {classes}, dtype) : empty(features, {}, dtype);
  Tensor terms = empty(features, {2}, dtype);
  const auto put = dtype == Dtype::Double ? write<double> : write<float>;
  double spread = 0, kl = 0;
  for (int64_t k = 0; k < classes; ++k) {
    double spread_of_class = 0, kl_of_class = 0;
    for (int64_t c = plan.first_chunk[k]; c < plan.first_chunk[k + 1]; ++c) {
      spread_of_class += spread_parts[c];
      kl_of_class += kl_parts[c];
    }
    if (per_class) put(loss, k, centralization * spread_of_class + options.cmi * kl_of_class);
    spread += spread_of_class;
    kl += kl_of_class;
  }
  if (!per_class) put(loss, 0, centralization * spread + options.cmi * kl);
  put(terms, 0, spread);
  put(terms, 1, cmi == 0 ? 0 : options.cmi / cmi * kl);
  return {loss, terms, centers, drift, log_q};
}

Tensor class_complexity_backward(
    const Tensor& grad, const Tensor& features, const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& index, int64_t largest, int64_t classes, const Tensor& centers, const Tensor& drift,
    const Tensor& log_q, double centralization, double cmi, std::optional<double> alpha, double beta,
    StringHandle reduction_text) {
  const std::string reduction = text(reduction_text);
  const Segments segments = segments_of(features, offsets, index, largest, classes);
  const Plan plan(segments, features.size(1));
  const ComplexityRows rows = rows_of(features, segments, plan);
  auto state = [&](const char* name, const Tensor& tensor, double weight) -> const void* {
    if (weight == 0) return nullptr;
    STD_TORCH_CHECK(tensor.scalar_type() == accumulator(features) && tensor.is_contiguous() &&
                        tensor.numel() == classes * rows.width,
                    name, " must be contiguous, of shape (", classes, ", ", rows.width, ") and the dtype of the loss");
    return tensor.const_data_ptr();
  };
  STD_TORCH_CHECK(grad.scalar_type() == accumulator(features) && grad.dim() <= 1 &&
                      (grad.dim() == 0 || grad.size(0) == classes), "grad must be like the loss");
  Tensor gradient = torch::stable::empty_like(features);
  const ComplexityBackward to{
      rows, options_of(features, centralization, cmi, alpha, beta, reduction),
      grad.const_data_ptr(), grad.dim() == 0 ? 0 : grad.stride(0),
      state("centers", centers, centralization), state("drift", drift, centralization), state("log_q", log_q, cmi),
      gradient.mutable_data_ptr(), gradient.stride(0), gradient.stride(1)};
  const auto run = DDFAST_DISPATCH(complexity_gradients);
  parallel(plan.size(), plan.work, 3 * rows.width * (accumulator(features) == Dtype::Double ? 8 : 4),
               [&](void* scratch, int64_t begin, int64_t end) { run(to, scratch, begin, end); });
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CPU, m) {
  m.impl("class_complexity.cpp", TORCH_BOX(&class_complexity));
  m.impl("class_complexity_backward.cpp", TORCH_BOX(&class_complexity_backward));
}

}  // namespace
}  // namespace ddfast
