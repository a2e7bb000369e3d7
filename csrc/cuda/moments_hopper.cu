// SPDX-License-Identifier: Apache-2.0
// ddfast::moments_partials: checks and the launch; the arithmetic is in moments_hopper.cuh. Chosen by nobody yet: it is
// there for a card to show whether it is right, and faster than ddfast.kernels.moments.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <optional>

#include "tensors.h"
#include "moments_hopper_ptx.cuh"
#include "moments_hopper.cuh"

namespace ddfast {
namespace {

constexpr int THREADS = 32 * WARPS;

__global__ void __launch_bounds__(THREADS, 1) moments_hopper(const __grid_constant__ Moments m) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char memory[];
  moments(m, blockIdx.x, *reinterpret_cast<HopperShared*>(memory));
#endif
}

using Optional = std::optional<Tensor>;

Rows rows_of(const Tensor& features, const Optional& offsets, const Optional& index, int64_t largest, int64_t rows,
             int64_t splits) {
  STD_TORCH_CHECK(features.scalar_type() == Dtype::Float && features.size(1) * features.size(2) == CHANNELS &&
                      features.size(3) == POSITIONS && features.stride(3) == 1 && features.stride(2) == POSITIONS &&
                      (features.size(1) == 1 || features.stride(1) == features.size(2) * POSITIONS) &&
                      features.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(features.const_data_ptr()) % 16 == 0,
                  "features must be float32 rows of ", CHANNELS, " descriptors at ", POSITIONS,
                  " positions without gaps, aligned to 16 bytes");
  auto integers = [](const Optional& tensor) { return tensor ? tensor->const_data_ptr<int64_t>() : nullptr; };
  const auto* data = static_cast<const float*>(features.const_data_ptr());
  return {data, integers(offsets), integers(index), largest, rows, splits, features.stride(0)};
}

void moments_partials(const Tensor& real, const Optional& real_offsets, const Optional& real_index,
                      int64_t real_largest, int64_t real_rows, int64_t real_splits, const Tensor& syn,
                      const Optional& offsets, const Optional& index, int64_t largest, int64_t rows, int64_t splits,
                      Tensor sums, Tensor products, const Optional& ticket) {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, syn.get_device_index());
  STD_TORCH_CHECK(major == 9, "the moments kernel for Hopper needs compute capability 9.0, not ", major);
  Moments m{};
  m.real = rows_of(real, real_offsets, real_index, real_largest, real_rows, real_splits);
  m.syn = rows_of(syn, offsets, index, largest, rows, splits);
  m.classes = sums.size(1);
  m.sums = static_cast<float*>(sums.mutable_data_ptr());
  m.products = static_cast<float*>(products.mutable_data_ptr());
  m.ticket = ticket ? static_cast<int*>(ticket->mutable_data_ptr()) : nullptr;
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(syn.get_device_index(), &stream));
  const auto programs = unsigned(m.classes * (real_splits + splits));
  if (programs == 0) return;
  cudaError_t error = cudaFuncSetAttribute(moments_hopper, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           int(sizeof(HopperShared)));
  if (error == cudaSuccess) {
    moments_hopper<<<programs, THREADS, sizeof(HopperShared), static_cast<cudaStream_t>(stream)>>>(m);
    error = cudaGetLastError();
  }
  STD_TORCH_CHECK(error == cudaSuccess, "the moments kernel was not launched: ", cudaGetErrorString(error));
}

STABLE_TORCH_LIBRARY_FRAGMENT(ddfast, m) {
  m.def(
      "moments_partials(Tensor real, Tensor? real_offsets, Tensor? real_index, SymInt real_largest, SymInt real_rows,"
      " SymInt real_splits, Tensor syn, Tensor? offsets, Tensor? index, SymInt largest, SymInt rows, SymInt splits,"
      " Tensor(a!) sums, Tensor(b!) products, Tensor(c!)? ticket) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CUDA, m) { m.impl("moments_partials", TORCH_BOX(&moments_partials)); }

}  // namespace
}  // namespace ddfast
