// SPDX-License-Identifier: Apache-2.0
// Instance norm with what follows it, plane by plane:
//   x̂ = (x − mean)·rstd,  y = x̂·weight + bias [+ residual],  out = average of max(y, 0)
//   g = dL/dy where y > 0, else 0;  dL/dweight = sum g·x̂,  dL/dbias = sum g
//   dL/dx = weight·rstd·(g − mean g − x̂·mean(g·x̂))
#include "blocks.h"
#include "plane.h"

namespace ddfast::DDFAST_ISA {
namespace {

template <class T>
T* at(void* maps, int64_t offset) {
  return maps ? static_cast<T*>(maps) + offset : nullptr;
}

template <class T>
const T* at(const void* maps, int64_t offset) {
  return maps ? static_cast<const T*>(maps) + offset : nullptr;
}

template <class A>
Norm<A> norm_of(const NormBlock& to, int64_t plane) {
  const int64_t c = plane % to.maps.channels;
  return {static_cast<const A*>(to.weight)[c], static_cast<const A*>(to.bias)[c], to.relu};
}

template <class T, class A = Accumulator<T>>
void forward(const NormBlock& to, A* scratch, int64_t plane) {
  const int64_t height = to.maps.height, width = to.maps.width, pixels = height * width;
  const T *x = at<T>(to.x, plane * pixels), *residual = at<T>(to.residual, plane * pixels);
  Norm<A> norm = norm_of<A>(to, plane);
  measure(x, pixels, to.eps, norm);
  if (to.mean) {
    static_cast<A*>(to.mean)[plane] = norm.mean;
    static_cast<A*>(to.rstd)[plane] = norm.rstd;
  }
  auto fill = [&](auto* out) {
    columns<A>(pixels, [&](int64_t j, auto lanes) {
      Vec<A> y = norm(load(x + j, lanes));
      if (residual) y += load(residual + j, lanes);
      store(out + j, rectified(y, norm.floor), lanes);
    });
  };
  if (!to.pool) return fill(at<T>(to.out, plane * pixels));
  fill(scratch);
  pool(scratch, height, width, at<T>(to.out, plane * (height / 2) * (width / 2)));
}

template <class T, class A = Accumulator<T>>
void backward(const NormBlock& to, A* scratch, int64_t plane) {
  const int64_t height = to.maps.height, width = to.maps.width, pixels = height * width;
  const T *x = at<T>(to.x, plane * pixels), *residual = at<T>(to.residual, plane * pixels);
  A *upstream = scratch, *spread = scratch + pixels;
  Norm<A> norm = norm_of<A>(to, plane);
  norm.mean = static_cast<const A*>(to.mean)[plane];
  norm.rstd = static_cast<const A*>(to.rstd)[plane];
  A total[2];
  auto run = [&](const auto* grad) {
    T* gradient = at<T>(to.x_grad, plane * pixels);
    differentiate(x, residual, grad, pixels, norm, upstream, total,
                  [&](int64_t j, auto lanes, Vec<A> g) { store(gradient + j, g, lanes); });
  };
  if (to.pool) {
    unpool(at<T>(to.grad, plane * (height / 2) * (width / 2)), height, width, upstream, spread);
    run(const_cast<const A*>(spread));
  } else {
    run(at<T>(to.grad, plane * pixels));
  }
  if (T* gradient = at<T>(to.residual_grad, plane * pixels))
    columns<A>(pixels, [&](int64_t j, auto lanes) { store(gradient + j, load(upstream + j, lanes), lanes); });
  if (to.weight_parts) {
    static_cast<A*>(to.weight_parts)[plane] = total[1];
    static_cast<A*>(to.bias_parts)[plane] = total[0];
  }
}

template <class T, class A>
void convert(const T* from, int64_t count, A* to) {
  columns<A>(count, [&](int64_t j, auto lanes) { store(to + j, load(from + j, lanes), lanes); });
}

}  // namespace

void block_parameter(Element from, Element maps, const void* parameter, double constant, int64_t count, void* to) {
  if (!parameter) {
    for (int64_t i = 0; i < count; ++i)
      maps == Element::float64 ? static_cast<double*>(to)[i] = constant : static_cast<float*>(to)[i] = float(constant);
    return;
  }
  DDFAST_ELEMENT_SWITCH(from, T, {
    convert(static_cast<const T*>(parameter), count, static_cast<Accumulator<T>*>(to));
  })
}

void norm_nchw_forward(const NormBlock& to, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(to.maps.element, T, {
    for (int64_t plane = first; plane < last; ++plane) forward<T>(to, static_cast<Accumulator<T>*>(scratch), plane);
  })
}

void norm_nchw_backward(const NormBlock& to, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(to.maps.element, T, {
    for (int64_t plane = first; plane < last; ++plane) backward<T>(to, static_cast<Accumulator<T>*>(scratch), plane);
  })
}

}  // namespace ddfast::DDFAST_ISA
