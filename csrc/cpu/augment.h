// SPDX-License-Identifier: Apache-2.0
// An affine map of each group of images: what augment_op.cpp asks of the kernels.
#pragma once

#include "capability.h"
#include "element.h"

namespace ddfast {

// A row of the table: an operation, its parameters and an offset, as ddfast/operators/schemas.py describes them.
constexpr int64_t TABLE = 6;
enum Operation { COLOR, SHIFT, CUT, MIRROR, SAMPLE };

struct Augment {
  const void* images;  // (G, n, C, H, W)
  void* out;           // the same, contiguous
  bool float64;        // or float
  const double* table;  // (G, TABLE)
  bool transpose;       // whether the transpose of the linear part is meant
  int64_t per_group, channels, height, width;
  int64_t group_stride, image_stride, channel_stride, row_stride, column_stride;  // of `images`

  // Pixels around an image, where all samples outside read.
  static constexpr int64_t MARGIN = 2;

  // Of one thread: padded images for the lanes of the widest register, or a row of all channels.
  int64_t scratch_bytes() const {
    const int64_t padded = (height + 2 * MARGIN) * (width + 2 * MARGIN) * 64, rows = channels * width * 8;
    return padded > rows ? padded : rows;
  }
};

// Images `first` to `last` of all G·n.
DDFAST_EVERYWHERE(void augment_images(const Augment& task, void* scratch, int64_t first, int64_t last);)

}  // namespace ddfast
