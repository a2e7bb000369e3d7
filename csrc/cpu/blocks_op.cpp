// SPDX-License-Identifier: Apache-2.0
// ddfast::norm_block.cpp, ddfast::conv_block.cpp and their backwards: checks, memory and threads; the arithmetic is in
// norm_nchw.cpp, norm_nhwc.cpp and conv_block.cpp.
#include "blocks.h"

#include <tuple>

#include "tensors.h"

namespace ddfast {
namespace {

using Optional = std::optional<Tensor>;

BlockMaps maps_of(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, name, " must have shape (N, C, H, W)");
  const bool channels_last = x.stride(1) == 1 && x.size(2) * x.size(3) != 1;
  STD_TORCH_CHECK(x.numel() == 0 || lies(x, channels_last), name, " must be contiguous or channels_last");
  return {element(name, x), x.size(0), x.size(1), x.size(2), x.size(3), channels_last};
}

// `other`'s elements, if it has that shape and lies like the maps.
const void* alike(const char* name, const Tensor& other, const Tensor& x, const BlockMaps& maps, int64_t channels,
                  int64_t height, int64_t width) {
  STD_TORCH_CHECK(other.is_cpu() && other.scalar_type() == x.scalar_type() && other.dim() == 4 &&
                      other.size(0) == maps.images && other.size(1) == channels && other.size(2) == height &&
                      other.size(3) == width && (other.numel() == 0 || lies(other, maps.channels_last)),
                  name, " must have shape (", maps.images, ", ", channels, ", ", height, ", ", width,
                  "), the dtype of the maps and their memory format");
  return other.const_data_ptr();
}

Tensor maps_like(const Tensor& x, const BlockMaps& maps, int64_t channels, int64_t height, int64_t width) {
  return empty_maps({maps.images, channels, height, width}, x.scalar_type(), maps.channels_last);
}

int64_t bytes(const BlockMaps& maps) { return maps.element == Element::float64 ? 8 : 4; }

// A parameter of `count` numbers in the accumulator's type, with zeros up to `room` of them.
Memory parameter(const char* name, const Optional& given, const BlockMaps& maps, double otherwise, int64_t count,
                 int64_t room) {
  const auto convert = DDFAST_DISPATCH(block_parameter);
  Memory held = memory(room * bytes(maps));
  Element from = maps.element;
  if (given) {
    from = element(name, *given);
    STD_TORCH_CHECK(given->is_contiguous() && given->numel() == count && (from == Element::float64) ==
                        (maps.element == Element::float64),
                    name, " must be contiguous, of ", count, " numbers, and of the dtype of the maps or float32");
  }
  convert(from, maps.element, given ? given->const_data_ptr() : nullptr, otherwise, count, held.get());
  convert(from, maps.element, nullptr, 0, room - count, static_cast<char*>(held.get()) + count * bytes(maps));
  return held;
}

// (N, C) of the accumulator's type for backward, or nothing.
Tensor statistics(const Tensor& x, int64_t channels, bool wanted) {
  return wanted ? empty(x, {x.size(0), channels}, accumulator(x)) : empty(x, {0}, accumulator(x));
}

void* kept(const char* name, const Tensor& tensor, const Tensor& x, int64_t channels) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == accumulator(x) && tensor.is_contiguous() &&
                      tensor.numel() == x.size(0) * channels,
                  name, " must be contiguous, of shape (", x.size(0), ", ", channels, ") and of the accumulator's dtype");
  return tensor.mutable_data_ptr();
}

void* data(const Tensor& tensor) { return tensor.numel() ? tensor.mutable_data_ptr() : nullptr; }

template <class Planes, class Pixels>
void run_norm(const NormBlock& to, const Planes& planes, const Pixels& pixels) {
  const BlockMaps& maps = to.maps;
  const int64_t size = maps.height * maps.width;
  if (maps.images * maps.channels * size == 0) return;
  if (maps.channels_last) {
    const int64_t strips = DDFAST_DISPATCH(norm_nhwc_strips)(maps);
    parallel(maps.images * strips, maps.channels * size / strips, 0,
             [&](void*, int64_t begin, int64_t end) { pixels(to, begin, end); });
  } else {
    parallel(maps.images * maps.channels, size, 2 * size * bytes(maps),
                 [&](void* scratch, int64_t begin, int64_t end) { planes(to, scratch, begin, end); });
  }
}

std::tuple<Tensor, Tensor, Tensor> norm_block(const Tensor& x, const Optional& weight, const Optional& bias,
                                              const Optional& residual, double eps, bool relu, bool pool,
                                              bool needs_grad) {
  const BlockMaps maps = maps_of("x", x);
  const int64_t channels = maps.channels, height = maps.height, width = maps.width;
  const Memory scale = parameter("weight", weight, maps, 1, channels, channels);
  const Memory shift = parameter("bias", bias, maps, 0, channels, channels);
  Tensor out = maps_like(x, maps, channels, pool ? height / 2 : height, pool ? width / 2 : width);
  Tensor mean = statistics(x, channels, needs_grad), rstd = statistics(x, channels, needs_grad);
  const NormBlock to{maps, x.const_data_ptr(),
                     residual ? alike("residual", *residual, x, maps, channels, height, width) : nullptr,
                     scale.get(), shift.get(), eps, relu, pool, data(mean), data(rstd), out.mutable_data_ptr()};
  run_norm(to, DDFAST_DISPATCH(norm_nchw_forward), DDFAST_DISPATCH(norm_nhwc_forward));
  return {out, mean, rstd};
}

// (N, C) -> (C,) in the dtype of the parameter.
Tensor added_up(const Tensor& parts, const Tensor& parameter) {
  const int64_t images[] = {0};
  const Tensor total = torch::stable::sum(parts, torch::headeronly::IntHeaderOnlyArrayRef(images, 1));
  return torch::stable::to(total, parameter.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_block_backward(
    const Tensor& grad, const Tensor& x, const Optional& weight, const Optional& bias, const Optional& residual,
    const Tensor& mean, const Tensor& rstd, bool relu, bool pool, bool affine_grad, bool residual_grad) {
  const BlockMaps maps = maps_of("x", x);
  const int64_t channels = maps.channels, height = maps.height, width = maps.width;
  const bool affine = affine_grad && weight;
  const Memory scale = parameter("weight", weight, maps, 1, channels, channels);
  const Memory shift = parameter("bias", bias, maps, 0, channels, channels);
  const Tensor weight_parts = statistics(x, channels, affine), bias_parts = statistics(x, channels, affine);
  Tensor x_grad = maps_like(x, maps, channels, height, width);
  Tensor to_residual = residual_grad ? maps_like(x, maps, channels, height, width) : empty(x, {0}, x.scalar_type());
  NormBlock to{maps, x.const_data_ptr(),
               residual ? alike("residual", *residual, x, maps, channels, height, width) : nullptr,
               scale.get(), shift.get(), 0, relu, pool, kept("mean", mean, x, channels),
               kept("rstd", rstd, x, channels), nullptr};
  to.grad = alike("grad", grad, x, maps, channels, pool ? height / 2 : height, pool ? width / 2 : width);
  to.x_grad = x_grad.mutable_data_ptr();
  to.residual_grad = data(to_residual);
  to.weight_parts = data(weight_parts);
  to.bias_parts = data(bias_parts);
  run_norm(to, DDFAST_DISPATCH(norm_nchw_backward), DDFAST_DISPATCH(norm_nhwc_backward));
  if (!affine) return {x_grad, empty(x, {0}, x.scalar_type()), empty(x, {0}, x.scalar_type()), to_residual};
  return {x_grad, added_up(weight_parts, *weight), added_up(bias_parts, *weight), to_residual};
}

struct Convolution {
  BlockMaps maps;
  int64_t channels, height, width;  // of the result
  Memory kernel, weight, bias;

  Convolution(const Tensor& images, const Tensor& kernel_, const Optional& weight_, const Optional& bias_,
              int64_t padding)
      : maps(maps_of("images", images)), channels(kernel_.size(0)), height((maps.height + 2 * padding - 2) / 2),
        width((maps.width + 2 * padding - 2) / 2) {
    STD_TORCH_CHECK(maps.channels <= 4 && kernel_.dim() == 4 && kernel_.size(1) == maps.channels &&
                        kernel_.size(2) == 3 && kernel_.size(3) == 3 && padding >= 0 && height > 0 && width > 0,
                    "kernel must have shape (C, c, 3, 3), for images of c channels, at most 4");
    const int64_t taps = 9 * maps.channels, room = (channels + CONV_TILE - 1) / CONV_TILE * CONV_TILE;
    kernel = parameter("kernel", kernel_, maps, 0, channels * taps, room * taps);
    weight = parameter("weight", weight_, maps, 1, channels, channels);
    bias = parameter("bias", bias_, maps, 0, channels, channels);
  }

  ConvBlock block(const Tensor& images, int64_t padding, double eps, void* mean, void* rstd) const {
    return {maps, images.const_data_ptr(), kernel.get(), channels, padding, weight.get(), bias.get(),
            eps, mean, rstd, nullptr};
  }

  template <class Run>
  void run(const ConvBlock& to, const Run& run) const {
    const int64_t scratch = DDFAST_DISPATCH(conv_block_scratch)(to);
    parallel(maps.images, channels * 36 * height * width, scratch,
                 [&](void* scratch, int64_t begin, int64_t end) { run(to, scratch, begin, end); });
  }
};

std::tuple<Tensor, Tensor, Tensor> conv_block(const Tensor& images, const Tensor& kernel, const Optional& weight,
                                              const Optional& bias, int64_t padding, double eps, bool needs_grad) {
  const Convolution convolution(images, kernel, weight, bias, padding);
  const int64_t channels = convolution.channels;
  Tensor out = maps_like(images, convolution.maps, channels, convolution.height, convolution.width);
  Tensor mean = statistics(images, channels, needs_grad), rstd = statistics(images, channels, needs_grad);
  ConvBlock to = convolution.block(images, padding, eps, data(mean), data(rstd));
  to.out = out.mutable_data_ptr();
  convolution.run(to, DDFAST_DISPATCH(conv_block_forward));
  return {out, mean, rstd};
}

Tensor conv_block_backward(const Tensor& grad, const Tensor& images, const Tensor& kernel, const Optional& weight,
                           const Optional& bias, const Tensor& mean, const Tensor& rstd, int64_t padding) {
  const Convolution convolution(images, kernel, weight, bias, padding);
  const BlockMaps& maps = convolution.maps;
  const int64_t channels = convolution.channels;
  ConvBlock to = convolution.block(images, padding, 0, kept("mean", mean, images, channels),
                                   kept("rstd", rstd, images, channels));
  Tensor gradient = maps_like(images, maps, maps.channels, maps.height, maps.width);
  to.grad = alike("grad", grad, images, maps, channels, convolution.height, convolution.width);
  to.images_grad = gradient.mutable_data_ptr();
  convolution.run(to, DDFAST_DISPATCH(conv_block_backward));
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(ddfast, CPU, m) {
  m.impl("norm_block.cpp", TORCH_BOX(&norm_block));
  m.impl("norm_block_backward.cpp", TORCH_BOX(&norm_block_backward));
  m.impl("conv_block.cpp", TORCH_BOX(&conv_block));
  m.impl("conv_block_backward.cpp", TORCH_BOX(&conv_block_backward));
}

}  // namespace
}  // namespace ddfast
