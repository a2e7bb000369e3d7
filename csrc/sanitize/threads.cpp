// SPDX-License-Identifier: Apache-2.0
// The operators under ThreadSanitizer, driven by std::thread: OpenMP's own synchronisation, which it cannot see, would
// be reported as races. `torch_parallel_for` is defined here and so takes the place of PyTorch's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include "cpu/capability.h"

using torch::stable::Tensor;

namespace ddfast {

Capability capability() { return Capability::portable; }

}  // namespace ddfast

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc body, void* data) {
  const int64_t step = std::max<int64_t>((end - begin + 3) / 4, 1);
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; i += step)
    threads.emplace_back([=] { body(i, std::min(i + step, end), data); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}

extern "C" AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = 4;
  return 0;
}

#define AFFINE "Tensor? weight, Tensor? bias"
#define SIDE "Tensor? offsets, Tensor? index, SymInt largest, SymInt num_classes"
#define COMPLEXITY "float centralization_weight, float cmi_weight, float? alpha, float beta, str reduction"
#define MATCHING "float mean_weight, float covariance_weight, bool tf32"
STABLE_TORCH_LIBRARY(ddfast, m) {
  m.def("class_complexity.cpp(Tensor features, " SIDE ", " COMPLEXITY ", bool needs_grad)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("class_complexity_backward.cpp(Tensor grad, Tensor features, " SIDE ", Tensor centers, Tensor drift,"
        " Tensor log_q, " COMPLEXITY ") -> Tensor");
  m.def("moment_matching.cpp(Tensor real, Tensor? real_offsets, Tensor? real_index, SymInt real_largest, Tensor syn, "
        SIDE ", " MATCHING ", bool needs_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("moment_matching_backward.cpp(Tensor grad, Tensor syn, " SIDE ", Tensor share, Tensor centers, Tensor drift,"
        " Tensor mean_gap, Tensor covariance_gap, " MATCHING ") -> Tensor");
  m.def("norm_block.cpp(Tensor x, " AFFINE ", Tensor? residual, float eps, bool relu, bool pool, bool needs_grad)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("norm_block_backward.cpp(Tensor grad, Tensor x, " AFFINE ", Tensor? residual, Tensor mean, Tensor rstd,"
        " bool relu, bool pool, bool affine_grad, bool residual_grad) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("conv_block.cpp(Tensor images, Tensor kernel, " AFFINE ", SymInt padding, float eps, bool needs_grad)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("conv_block_backward.cpp(Tensor grad, Tensor images, Tensor kernel, " AFFINE ", Tensor mean, Tensor rstd,"
        " SymInt padding) -> Tensor");
}

template <class... Arguments>
std::vector<Tensor> call(const char* name, size_t results, const Arguments&... arguments) {
  std::vector<StableIValue> stack{torch::stable::detail::from(arguments)...};
  stack.resize(std::max(stack.size(), results));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "cpp", stack.data(), TORCH_ABI_VERSION));
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < results; ++i) tensors.push_back(torch::stable::detail::to<Tensor>(stack[i]));
  return tensors;
}

Tensor numbers(std::vector<int64_t> shape, double value) {
  Tensor tensor = torch::stable::empty(shape, torch::headeronly::ScalarType::Float);
  auto* data = static_cast<float*>(tensor.mutable_data_ptr());
  for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = float(value != 0 ? value : double(i * 37 % 101) / 50 - 1);
  return tensor;
}

// Forward and backward of every block, in either memory format.
void blocks() {
  const std::optional<Tensor> none, weight = numbers({70}, 2);
  using torch::headeronly::MemoryFormat;
  for (MemoryFormat format : {MemoryFormat::Contiguous, MemoryFormat::ChannelsLast}) {
    auto maps = [&](std::vector<int64_t> shape) { return torch::stable::contiguous(numbers(shape, 0), format); };
    Tensor x = maps({9, 70, 12, 10}), kernel = numbers({70, 3, 3, 3}, 0);
    Tensor images = maps({9, 3, 12, 10}), grad = maps({9, 70, 6, 5});
    auto normed = call("ddfast::norm_block", 3, x, weight, weight, none, 1e-5, true, true, true);
    call("ddfast::norm_block_backward", 4, grad, x, weight, weight, none, normed[1], normed[2], true, true, true, false);
    auto block = call("ddfast::conv_block", 3, images, kernel, weight, weight, int64_t(1), 1e-5, true);
    call("ddfast::conv_block_backward", 1, grad, images, kernel, weight, weight, block[1], block[2], int64_t(1));
  }
}

// Forward and backward of every loss: few large classes, cut into pieces, and many small ones.
void losses() {
  const std::optional<Tensor> none;
  const std::optional<double> alpha;
  const std::string reduction = "batchmean";
  for (auto [classes, rows] : {std::pair<int64_t, int64_t>{1, 600}, {12, 9}}) {
    Tensor features = numbers({classes * rows, 70}, 0), one = numbers({1}, 1), grad = torch::stable::select(one, 0, 0);
    auto state = call("ddfast::class_complexity", 5, features, none, none, rows, classes, 0.5, 1.0, alpha, 0.0,
                      reduction, true);
    call("ddfast::class_complexity_backward", 1, grad, features, none, none, rows, classes, state[2], state[3],
         state[4], 0.5, 1.0, alpha, 0.0, reduction);
    Tensor maps = numbers({classes * rows, 40, 1, 5}, 0), real = numbers({classes * 7, 40, 1, 5}, 0);
    auto matched = call("ddfast::moment_matching", 7, real, none, none, int64_t(7), maps, none, none, rows, classes,
                        1.0, 0.1, false, true);
    call("ddfast::moment_matching_backward", 1, grad, maps, none, none, rows, classes, matched[2], matched[3],
         matched[4], matched[5], matched[6], 1.0, 0.1, false);
  }
}

int main() {
  std::vector<std::thread> callers;
  for (auto operators : {losses, blocks, losses, blocks}) callers.emplace_back(operators);
  for (std::thread& caller : callers) caller.join();
  std::puts("no races");
}
