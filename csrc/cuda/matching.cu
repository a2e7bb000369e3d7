// SPDX-License-Identifier: Apache-2.0
// ddfast::match_partials: memory and the launch; the arithmetic is in matching.cuh.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <optional>
#include <tuple>

#include "tensors.h"
#include "matching.cuh"

namespace ddfast {
namespace {

using Optional = std::optional<Tensor>;

template <class T>
const T* pointer(const Optional& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

Side side_of(const Tensor& features, const Optional& offsets, const Optional& index, int64_t largest, int64_t splits,
             int64_t first_split) {
  Side side{};
  side.features = features.const_data_ptr();
  side.offsets = pointer<int64_t>(offsets), side.index = pointer<int64_t>(index);
  side.largest = largest, side.splits = splits, side.first_split = first_split;
  side.stride_n = features.stride(0), side.stride_a = features.stride(1);
  side.stride_b = features.stride(2), side.stride_p = features.stride(3);
  return side;
}

template <class T, class Feature>
void launch(const Matching& matching, cudaStream_t stream) {
  match<T, Feature><<<unsigned(matching.classes * matching.parts), dim3(PART, ROWS), 0, stream>>>(matching);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "covariance matching was not launched: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> match_partials(
    const Optional& real, const Optional& real_offsets, const Optional& real_index, int64_t real_largest,
    const Optional& counts, const Optional& means, const Optional& covariances, const Tensor& syn,
    const Optional& offsets, const Optional& index, int64_t largest, const Tensor& sums, const Optional& products,
    Tensor ticket, int64_t real_splits, int64_t splits, double mean_weight, double covariance_weight,
    bool needs_grad) {
  Matching m{};
  m.classes = sums.size(1), m.descriptors = sums.size(2), m.b = syn.size(2), m.positions = sums.size(3);
  m.syn = side_of(syn, offsets, index, largest, splits, real_splits);
  if (real) {
    m.real = side_of(*real, real_offsets, real_index, real_largest, real_splits, 0);
  } else {
    m.real.counts = pointer<int64_t>(counts);
    m.real.means = pointer<void>(means), m.real.covariances = pointer<void>(covariances);
    m.real.doubles = means->scalar_type() == Dtype::Double;
  }
  const int64_t across = (m.descriptors + PART - 1) / PART;
  m.parts = int(products ? across * (across + 1) / 2 : across);
  if (products) m.tiles = int(products->size(2)), m.block = int(products->size(3));
  m.mean_weight = mean_weight, m.covariance_weight = covariance_weight;

  const Dtype dtype = accumulator(syn);
  auto state = [&](std::initializer_list<int64_t> shape, bool wanted, void*& pointer) {
    Tensor made = needs_grad && wanted ? empty(syn, shape, dtype) : empty(syn, {0}, dtype);
    if (needs_grad && wanted) pointer = made.mutable_data_ptr();
    return made;
  };
  const bool mean = mean_weight != 0, covariance = covariance_weight != 0;
  const int64_t k = m.classes, d = m.descriptors, p = m.positions;
  Tensor share = state({k}, true, m.share);
  Tensor centers = state({k, d, p}, covariance, m.centers), drift = state({k, d, p}, covariance, m.drift);
  Tensor mean_gap = state({k, d, p}, mean, m.mean_gap);
  Tensor covariance_gap = state({k, d, d}, covariance, m.covariance_gap);
  Tensor loss = empty(syn, {}, dtype), terms = empty(syn, {2}, dtype), squares = empty(syn, {2, k, m.parts}, dtype);
  m.loss = loss.mutable_data_ptr(), m.terms = terms.mutable_data_ptr(), m.squares = squares.mutable_data_ptr();
  m.sums = sums.const_data_ptr(), m.products = pointer<void>(products);
  m.ticket = static_cast<unsigned*>(ticket.mutable_data_ptr());

  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(syn.get_device_index(), &stream));
  const auto on = static_cast<cudaStream_t>(stream);
  switch (syn.scalar_type()) {
    case Dtype::Double: launch<double, double>(m, on); break;
    case Dtype::Float: launch<float, float>(m, on); break;
    case Dtype::BFloat16: launch<float, __nv_bfloat16>(m, on); break;
    default: launch<float, __half>(m, on);
  }
  return {loss, terms, share, centers, drift, mean_gap, covariance_gap};
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { m.impl("match_partials", TORCH_BOX(&match_partials)); }

}  // namespace
}  // namespace ddfast
