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
  float* points;  // at the points: the kernel, 36·(depth + 2)·width numbers, or the tiles, 36·(tiles·depth + 16)

  int64_t tiles() const { return images * ((height + 3) / 4) * ((image_width + 3) / 4); }
};

// There are two ways through a convolution. Of the kernel and the tiles, the smaller comes to the points first, whole and
// once; the larger a piece at a time, each used up while it is in a core's cache. Both add up in the same order. Scratch is
// for one thread, in bytes; tiles have 4x4 pixels, images one after another.
DDFAST_EVERYWHERE(
    // Pieces `first` to `last` of the kernel, of 16 by 16 channels; then tiles `first` to `last`, with scratch for so many.
    void winograd_kernel(const Convolution& task, int64_t first, int64_t last);
    int64_t winograd_scratch(const Convolution& task, int64_t tiles);
    void winograd_tiles(const Convolution& task, void* scratch, int64_t first, int64_t last);
    // Tiles `first` to `last`, with scratch for a pixel; then blocks of output channels `first` to `last`, of so many.
    void winograd_inputs(const Convolution& task, void* scratch, int64_t first, int64_t last);
    int64_t winograd_blocks(const Convolution& task);
    int64_t winograd_outputs_scratch(const Convolution& task);
    void winograd_outputs(const Convolution& task, void* scratch, int64_t first, int64_t last);)

}  // namespace ddfast
