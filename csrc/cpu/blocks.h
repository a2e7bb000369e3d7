// SPDX-License-Identifier: Apache-2.0
// What networks are made of: what blocks_op.cpp asks of the kernels in norm_nchw.cpp, norm_nhwc.cpp and conv_block.cpp.
#pragma once

#include "capability.h"
#include "element.h"

namespace ddfast {

// Maps (N, C, H, W) of an element type, whose pixels are `channels_last` or in planes.
struct BlockMaps {
  Element element;
  int64_t images, channels, height, width;
  bool channels_last;
};

// y = (x − mean)·rstd·weight + bias [+ residual] [ReLU] [pool]. Parameters and statistics have the accumulator's type.
struct NormBlock {
  BlockMaps maps;
  const void* x;
  const void* residual;         // null without one
  const void *weight, *bias;    // (C,)
  double eps;
  bool relu, pool;
  void *mean, *rstd;            // (N, C); forward: null where nobody wants them
  void* out;                    // forward
  const void* grad = nullptr;   // backward: of `out`
  void* x_grad = nullptr;
  void* residual_grad = nullptr;              // null where nobody wants it
  void *weight_parts = nullptr, *bias_parts = nullptr;  // (N, C) what each image adds to their gradients; null likewise
};

constexpr int64_t CONV_TILE = 4;  // channels that conv_block works on at a time

// The same of a 3x3 convolution of images, with ReLU and pool.
struct ConvBlock {
  BlockMaps images;     // (N, c, H, W), c at most 4
  const void* pixels;
  const void* kernel;   // (C, c, 3, 3) of the accumulator's type, with zeros up to a multiple of CONV_TILE channels
  int64_t channels, padding;
  const void *weight, *bias;
  double eps;
  void *mean, *rstd;
  void* out;                    // (N, C, H' / 2, W' / 2), laid out as the images
  const void* grad = nullptr;
  void* images_grad = nullptr;
};

DDFAST_EVERYWHERE(
    // A parameter in the accumulator's type; a constant without one.
    void block_parameter(Element from, Element maps, const void* parameter, double constant, int64_t count, void* to);
    // A task is a plane; scratch is two planes of the accumulator.
    void norm_nchw_forward(const NormBlock& to, void* scratch, int64_t first, int64_t last);
    void norm_nchw_backward(const NormBlock& to, void* scratch, int64_t first, int64_t last);
    // A task is a strip of an image's channels.
    int64_t norm_nhwc_strips(const BlockMaps& maps);
    void norm_nhwc_forward(const NormBlock& to, int64_t first, int64_t last);
    void norm_nhwc_backward(const NormBlock& to, int64_t first, int64_t last);
    // A task is an image.
    int64_t conv_block_scratch(const ConvBlock& to);
    void conv_block_forward(const ConvBlock& to, void* scratch, int64_t first, int64_t last);
    void conv_block_backward(const ConvBlock& to, void* scratch, int64_t first, int64_t last);)

}  // namespace ddfast
