// SPDX-License-Identifier: Apache-2.0
// ddfast::augment.cpp and its backward: checks, memory and threads; the arithmetic is in augment.cpp.
#include "augment.h"

#include "tensors.h"

namespace ddfast {
namespace {

const double* checked(const Tensor& table, int64_t groups) {
  STD_TORCH_CHECK(table.is_cpu() && table.scalar_type() == Dtype::Double && table.is_contiguous() && table.dim() == 2 &&
                      table.size(0) == groups && table.size(1) == TABLE,
                  "table must be contiguous float64 of shape (", groups, ", ", TABLE, ") on the CPU");
  const double* rows = static_cast<const double*>(table.const_data_ptr());
  // Parameters become whole numbers, and not even the largest image needs larger ones.
  STD_TORCH_CHECK(std::all_of(rows, rows + groups * TABLE, [](double value) { return value > -0x1p40 && value < 0x1p40; }),
                  "table must be finite");
  for (int64_t g = 0; g < groups; ++g)
    STD_TORCH_CHECK(COLOR <= rows[g * TABLE] && rows[g * TABLE] <= SAMPLE, "table must hold operations from ", int(COLOR),
                    " to ", int(SAMPLE));
  return rows;
}

Tensor run(const char* name, const Tensor& images, const Tensor& table, bool transpose) {
  STD_TORCH_CHECK(images.dim() == 5, name, " must have shape (G, n, C, H, W)");
  const Element type = element(name, images);
  STD_TORCH_CHECK(type == Element::float32 || type == Element::float64, name, " must be float32 or float64");
  Tensor out = empty(images, {images.size(0), images.size(1), images.size(2), images.size(3), images.size(4)},
                     images.scalar_type());
  const Augment task{images.const_data_ptr(), out.mutable_data_ptr(), type == Element::float64,
                     checked(table, images.size(0)), transpose,
                     images.size(1), images.size(2), images.size(3), images.size(4),
                     images.stride(0), images.stride(1), images.stride(2), images.stride(3), images.stride(4)};
  if (images.numel() == 0) return out;
  const auto augment = DDFAST_DISPATCH(augment_images);
  parallel(images.size(0) * images.size(1), task.channels * task.height * task.width, task.scratch_bytes(),
           [&](void* scratch, int64_t begin, int64_t end) { augment(task, scratch, begin, end); });
  return out;
}

Tensor augment(const Tensor& images, const Tensor& table) { return run("images", images, table, false); }

Tensor augment_backward(const Tensor& grad, const Tensor& table) { return run("grad", grad, table, true); }

STABLE_TORCH_LIBRARY_IMPL(ddfast, CPU, m) {
  m.impl("augment.cpp", TORCH_BOX(&augment));
  m.impl("augment_backward.cpp", TORCH_BOX(&augment_backward));
}

}  // namespace
}  // namespace ddfast
