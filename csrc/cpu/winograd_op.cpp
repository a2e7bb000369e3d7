// SPDX-License-Identifier: Apache-2.0
// ddfast::conv3x3.cpp: checks, memory and threads; the arithmetic is in winograd.cpp.
#include "winograd.h"

#include "tensors.h"

namespace ddfast {
namespace {

void by_tiles(Convolution& task, int64_t threads) {
  const int64_t depth = task.depth, width = task.width;
  const Memory points = memory(36 * (depth + 2) * width * 4);
  task.points = static_cast<float*>(points.get());
  const auto kernels = DDFAST_DISPATCH(winograd_kernel);
  const auto tiles = DDFAST_DISPATCH(winograd_tiles);
  parallel(width / 16 * (depth / 16), 36 * 16 * 16, 0,
           [&](void*, int64_t begin, int64_t end) { kernels(task, begin, end); });
  // A block of tiles at the points and its products stay in a core's cache; of a large kernel, which does not, more is made
  // at a time.
  const int64_t total = task.tiles(), most = depth <= 128 ? 32 : 64;
  const int64_t blocks = std::min(total, ((total + most - 1) / most + threads - 1) / threads * threads);
  const int64_t bytes = DDFAST_DISPATCH(winograd_scratch)(task, (total + blocks - 1) / blocks);
  parallel(blocks, most * 36 * depth * width / 16, bytes, [&](void* scratch, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      tiles(task, scratch, total * block / blocks, total * (block + 1) / blocks);
  });
}

void by_outputs(Convolution& task, int64_t blocks) {
  const int64_t depth = task.depth, total = task.tiles();
  const Memory points = memory(36 * (total * depth + 16) * 4);
  task.points = static_cast<float*>(points.get());
  const auto inputs = DDFAST_DISPATCH(winograd_inputs);
  const auto outputs = DDFAST_DISPATCH(winograd_outputs);
  parallel(total, 36 * depth, depth * 4,
           [&](void* scratch, int64_t begin, int64_t end) { inputs(task, scratch, begin, end); });
  parallel(blocks, total * 36 * depth, DDFAST_DISPATCH(winograd_outputs_scratch)(task),
           [&](void* scratch, int64_t begin, int64_t end) { outputs(task, scratch, begin, end); });
}

// A 3x3 convolution of stride 1 and padding 1, or its adjoint: the same with the kernel's channels exchanged and seen
// from behind.
Tensor conv3x3(const Tensor& x, const Tensor& kernel, const std::optional<Tensor>& bias, bool adjoint) {
  const Element type = element("x", x);
  STD_TORCH_CHECK(type != Element::float64, "x must not be float64");
  STD_TORCH_CHECK(x.dim() == 4 && lies(x, true), "x must have shape (N, C, H, W) and be channels_last");
  STD_TORCH_CHECK(kernel.dim() == 4 && kernel.size(2) == 3 && kernel.size(3) == 3 && element("kernel", kernel) == type,
                  "kernel must have shape (K, C, 3, 3) and the dtype of x");
  const int64_t depth = kernel.size(adjoint ? 0 : 1), width = kernel.size(adjoint ? 1 : 0);
  STD_TORCH_CHECK(x.size(1) == depth, "x must have ", depth, " channels, got ", x.size(1));
  STD_TORCH_CHECK(depth % 16 == 0 && width % 16 == 0, "kernel must have multiples of 16 channels");
  Tensor out = empty_maps({x.size(0), width, x.size(2), x.size(3)}, x.scalar_type(), true);
  if (x.numel() == 0) return out;
  STD_TORCH_CHECK(lies(kernel, true), "kernel must be channels_last");
  Convolution task{
      x.const_data_ptr(), kernel.const_data_ptr(), nullptr, out.mutable_data_ptr(), type, x.size(0), x.size(2), x.size(3),
      depth, width, adjoint, nullptr};
  if (bias) {
    STD_TORCH_CHECK(element("bias", *bias) == type && bias->numel() == width && bias->is_contiguous(),
                    "bias must have shape (", width, ",) and the dtype of x");
    task.bias = bias->const_data_ptr();
  }
  const int64_t total = task.tiles(), threads = torch::stable::get_num_threads();
  const int64_t blocks = DDFAST_DISPATCH(winograd_blocks)(task);
  if (total < width && blocks >= threads)
    by_outputs(task, blocks);
  else
    by_tiles(task, threads);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CPU, m) { m.impl("conv3x3.cpp", TORCH_BOX(&conv3x3)); }

}  // namespace
}  // namespace ddfast
