// SPDX-License-Identifier: Apache-2.0
// 3x3 convolutions of stride 1 between maps whose channels are innermost, by Winograd's minimal filtering.
#pragma once

#include <cstdint>

#include "capability.h"
#include "element.h"

namespace ddfast {

struct Convolution {
  const void* in;      // (N, H, W, depth), channels_last
  const void* kernel;  // of the element type as well
  const void* bias;    // (width,) or null
  void* out;           // (N, H, W, width)
  Element element;
  int64_t images, height, image_width;
  int64_t depth, width;  // channels in and out, multiples of 16
  // The kernel lies as (width, 3, 3, depth); the adjoint's as (depth, 3, 3, width), and is seen from behind.
  bool adjoint;
  float* points;  // 36·(depth + 2)·width numbers: the kernel at the points, which `winograd_kernel` fills in

  int64_t tiles() const { return images * ((height + 3) / 4) * ((image_width + 3) / 4); }
};

// Scratch is for one thread and at most `tiles` tiles, in bytes.
DDFAST_EVERYWHERE(
    int64_t winograd_scratch(const Convolution& task, int64_t tiles);
    // Pieces `first` to `last` of the kernel, of 16 by 16 channels.
    void winograd_kernel(const Convolution& task, int64_t first, int64_t last);
    // Tiles `first` to `last` of 4x4 pixels, images one after another.
    void winograd_tiles(const Convolution& task, void* scratch, int64_t first, int64_t last);)

}  // namespace ddfast
