// SPDX-License-Identifier: Apache-2.0
// What the tensor side of every operator shares: PyTorch's stable ABI, and nothing of PyTorch beyond it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>

#include "element.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // PyTorch 2.11 has only the check without a message
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace ddfast {

using torch::stable::Tensor;
using Dtype = torch::headeronly::ScalarType;

// An uninitialised tensor on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, Dtype dtype) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), dtype);
}

// The dtype of sums and results.
inline Dtype accumulator(const Tensor& features) {
  return features.scalar_type() == Dtype::Double ? Dtype::Double : Dtype::Float;
}

// The text of a str argument, which is used up. An argument of std::string leaks at every call: the conversion of PyTorch
// 2.11 to 2.13 allocates it and returns a copy.
inline std::string text(StringHandle argument) {
  const std::unique_ptr<StringOpaque, AOTITorchError (*)(StringHandle)> held(argument, torch_delete_string);
  size_t length;
  const char* data;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(argument, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(argument, &data));
  return std::string(data, length);
}

inline Element element(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be a CPU tensor");
  switch (tensor.scalar_type()) {
    case Dtype::Float: return Element::float32;
    case Dtype::Double: return Element::float64;
    case Dtype::BFloat16: return Element::bfloat16;
    case Dtype::Half: return Element::float16;
    default: STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

// Whether maps (N, C, H, W) lie without gaps, pixel by pixel or in planes.
inline bool lies(const Tensor& maps, bool channels_last) {
  constexpr int PIXELS[] = {1, 3, 2, 0}, PLANES[] = {3, 2, 1, 0};
  int64_t expected = 1;
  for (int dim : channels_last ? PIXELS : PLANES) {
    if (maps.size(dim) != 1 && maps.stride(dim) != expected) return false;
    expected *= maps.size(dim);
  }
  return true;
}

// Uninitialised maps (N, C, H, W) on the CPU that lie so.
inline Tensor empty_maps(std::initializer_list<int64_t> shape, Dtype dtype, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), dtype, std::nullopt,
                              std::nullopt, std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Which rows are of which class: row i of class k is index[offsets[k] + i], or k·largest + i where both are null.
struct Segments {
  const int64_t* offsets = nullptr;
  const int64_t* index = nullptr;
  int64_t largest, classes;

  Segments(const Tensor& features, const std::optional<Tensor>& offsets_, const std::optional<Tensor>& index_,
           int64_t largest_, int64_t classes_)
      : largest(largest_), classes(classes_) {
    STD_TORCH_CHECK(offsets_.has_value() == index_.has_value(), "offsets and index must be given together");
    if (!offsets_) {
      STD_TORCH_CHECK(features.size(0) == largest * classes, "features must have ", largest * classes, " rows, got ",
                      features.size(0));
      return;
    }
    offsets = integers("offsets", *offsets_, classes + 1);
    index = integers("index", *index_, features.size(0));
    STD_TORCH_CHECK(std::is_sorted(offsets, offsets + classes + 1) && offsets[0] == 0 &&
                        offsets[classes] == features.size(0),
                    "offsets must rise from 0 to the ", features.size(0), " rows");
    STD_TORCH_CHECK(std::all_of(index, index + features.size(0),
                                [&](int64_t i) { return 0 <= i && i < features.size(0); }),
                    "index must hold rows of the ", features.size(0));
  }

  int64_t first(int64_t k) const { return offsets ? offsets[k] : k * largest; }
  int64_t count(int64_t k) const { return offsets ? offsets[k + 1] - offsets[k] : largest; }
  int64_t row(int64_t i) const { return index ? index[i] : i; }  // i counts from first(k)

 private:
  static const int64_t* integers(const char* name, const Tensor& tensor, int64_t size) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == Dtype::Long && tensor.is_contiguous() &&
                        tensor.dim() == 1 && tensor.size(0) == size,
                    name, " must be contiguous int64 of shape (", size, ",) on the CPU");
    return tensor.const_data_ptr<int64_t>();
  }
};

// Uninitialised, of PyTorch's allocator: aligned for every vector, and counted by whoever counts tensors.
struct Memory {
  Tensor tensor;

  void* get() const { return tensor.mutable_data_ptr(); }
};

inline Memory memory(int64_t bytes) { return {torch::stable::empty({bytes}, Dtype::Byte)}; }

// Runs body(scratch, begin, end) over 0 .. tasks on PyTorch's threads, each with bytes of its own to work in; `work` is what
// one task costs, in elements. No thread is woken for less than a few microseconds of work. Where tasks are cut depends on
// the number of threads alone.
template <class Body>
void parallel(int64_t tasks, int64_t work, int64_t scratch_bytes, const Body& body) {
  constexpr int64_t ENOUGH = 1 << 14, LINE = 64;
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  const int64_t shares = std::clamp<int64_t>(tasks * work / ENOUGH, std::min<int64_t>(threads, 1), threads);
  const int64_t bytes = (scratch_bytes + LINE - 1) / LINE * LINE;
  const Memory scratch = memory(shares * bytes);  // here, and not in a thread that PyTorch's hooks do not know
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t share = first; share < last; ++share)
      body(static_cast<char*>(scratch.get()) + share * bytes, tasks * share / shares, tasks * (share + 1) / shares);
  });
}

}  // namespace ddfast
