// SPDX-License-Identifier: Apache-2.0
// Instance norm with what follows it, of channels_last maps: a lane is a channel. The formulas are those of norm_nchw.cpp.
//
// A task is so many channels of an image that their pixels stay in the second cache while they are read again.
#include "blocks.h"
#include "plane.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int STRIP = 4;  // registers of channels

enum class Mode { plain, residual, pooled };

// `G` registers of channels of an image, from channel `c` on; of the last one only `lanes`.
template <class T, Mode MODE, int G, class Lanes>
struct Strip {
  using A = Accumulator<T>;
  using V = Vec<A>;
  static constexpr int L = LANES<A>;

  const NormBlock& to;
  const int64_t image, c;
  const Lanes lanes;
  const int64_t channels = to.maps.channels, height = to.maps.height, width = to.maps.width;
  const A floor = to.relu ? A(0) : A(-__builtin_inf());
  const A pixels = A(height * width);

  template <class Any>
  Any* pixel(Any* maps, int64_t y, int64_t x) const {
    return maps + ((image * height + y) * width + x) * channels + c;
  }
  template <class Any>
  Any* average(Any* maps, int64_t y, int64_t x) const {
    return maps + ((image * (height / 2) + y) * (width / 2) + x) * channels + c;
  }
  // Of arrays (C,) and (N, C).
  void read(const void* from, int64_t row, V (&to_)[G]) const {
    for (int g = 0; g < G; ++g) to_[g] = load(static_cast<const A*>(from) + row * channels + c + g * L, lanes);
  }
  void write(void* to_, const V (&from)[G]) const {
    for (int g = 0; g < G; ++g) store(static_cast<A*>(to_) + image * channels + c + g * L, from[g], lanes);
  }

  // Sums over the pixels, row by row: what is added to is never much larger than what is added.
  template <int K, class Body>
  void add_up(V (&total)[K], const Body& body) const {
    for (int k = 0; k < K; ++k) total[k] = V{};
    for (int64_t y = 0; y < height; ++y) {
      V row[K] = {};
      for (int64_t x = 0; x < width; ++x) body(y, x, row);
      for (int k = 0; k < K; ++k) total[k] += row[k];
    }
  }

  void measure(V (&mean)[G], V (&rstd)[G]) const {
    const T* maps = static_cast<const T*>(to.x);
    V differences[2 * G];
    add_up(mean, [&](int64_t y, int64_t x, V* row) {
      for (int g = 0; g < G; ++g) row[g] += load(pixel(maps, y, x) + g * L, lanes);
    });
    for (int g = 0; g < G; ++g) mean[g] /= pixels;
    add_up(differences, [&](int64_t y, int64_t x, V* row) {
      for (int g = 0; g < G; ++g) {
        const V difference = load(pixel(maps, y, x) + g * L, lanes) - mean[g];
        row[g] += difference;
        row[G + g] += difference * difference;
      }
    });
    for (int g = 0; g < G; ++g) {
      const V drift = differences[g] / pixels, variance = differences[G + g] / pixels - drift * drift;
      mean[g] += drift;
      for (int l = 0; l < L; ++l)
        rstd[g][l] = A(1 / __builtin_sqrt((variance[l] < 0 ? 0 : variance[l]) + to.eps));
    }
  }

  void forward() const {
    const T *maps = static_cast<const T*>(to.x), *residual = static_cast<const T*>(to.residual);
    T* out = static_cast<T*>(to.out);
    V mean[G], scale[G], bias[G], rstd[G];
    measure(mean, rstd);
    if (to.mean) {
      write(to.mean, mean);
      write(to.rstd, rstd);
    }
    read(to.weight, 0, scale);
    read(to.bias, 0, bias);
    for (int g = 0; g < G; ++g) scale[g] *= rstd[g];
    auto value = [&](int64_t y, int64_t x, int g) {
      V v = (load(pixel(maps, y, x) + g * L, lanes) - mean[g]) * scale[g] + bias[g];
      if constexpr (MODE == Mode::residual) v += load(pixel(residual, y, x) + g * L, lanes);
      return rectified(v, floor);
    };
    if constexpr (MODE == Mode::pooled) {
      for (int64_t y = 0; y < height / 2; ++y)
        for (int64_t x = 0; x < width / 2; ++x)
          for (int g = 0; g < G; ++g) {
            const V upper = value(2 * y, 2 * x, g) + value(2 * y, 2 * x + 1, g);
            const V lower = value(2 * y + 1, 2 * x, g) + value(2 * y + 1, 2 * x + 1, g);
            store(average(out, y, x) + g * L, A(0.25) * (upper + lower), lanes);
          }
    } else {
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
          for (int g = 0; g < G; ++g) store(pixel(out, y, x) + g * L, value(y, x, g), lanes);
    }
  }

  void backward() const {
    const T *maps = static_cast<const T*>(to.x), *residual = static_cast<const T*>(to.residual);
    const T* grad = static_cast<const T*>(to.grad);
    T *gradient = static_cast<T*>(to.x_grad), *residual_gradient = static_cast<T*>(to.residual_grad);
    V mean[G], rstd[G], scale[G], bias[G], total[2 * G], shift[G], slope[G];
    read(to.mean, image, mean);
    read(to.rstd, image, rstd);
    read(to.weight, 0, scale);
    read(to.bias, 0, bias);
    for (int g = 0; g < G; ++g) scale[g] *= rstd[g];
    auto upstream = [&](int64_t y, int64_t x, int g, V difference) {  // the gradient of y before the ReLU
      V v = difference * scale[g] + bias[g];
      if constexpr (MODE == Mode::residual) v += load(pixel(residual, y, x) + g * L, lanes);
      V from{};
      if constexpr (MODE == Mode::pooled) {
        if (y / 2 < height / 2 && x / 2 < width / 2)
          from = A(0.25) * load(average(grad, y / 2, x / 2) + g * L, lanes);
      } else {
        from = load(pixel(grad, y, x) + g * L, lanes);
      }
      return v <= floor ? V{} : from;
    };
    add_up(total, [&](int64_t y, int64_t x, V* row) {
      for (int g = 0; g < G; ++g) {
        const V difference = load(pixel(maps, y, x) + g * L, lanes) - mean[g];
        const V from = upstream(y, x, g, difference);
        row[g] += from;
        row[G + g] += from * difference;
      }
    });
    for (int g = 0; g < G; ++g) {
      total[G + g] *= rstd[g];
      shift[g] = total[g] / pixels;
      slope[g] = total[G + g] / pixels * rstd[g];
    }
    if (to.weight_parts) {
      for (int g = 0; g < G; ++g) {
        store(static_cast<A*>(to.bias_parts) + image * channels + c + g * L, total[g], lanes);
        store(static_cast<A*>(to.weight_parts) + image * channels + c + g * L, total[G + g], lanes);
      }
    }
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        for (int g = 0; g < G; ++g) {
          const V difference = load(pixel(maps, y, x) + g * L, lanes) - mean[g];
          const V from = upstream(y, x, g, difference);
          if (residual_gradient) store(pixel(residual_gradient, y, x) + g * L, from, lanes);
          store(pixel(gradient, y, x) + g * L, scale[g] * (from - shift[g] - slope[g] * difference), lanes);
        }
  }
};

constexpr auto FORWARD = [](const auto& strip) { strip.forward(); };
constexpr auto BACKWARD = [](const auto& strip) { strip.backward(); };

// Whole strips, then register by register.
template <class T, Mode MODE, class Run>
void strip(const NormBlock& to, int64_t image, int64_t c, const Run& run) {
  constexpr int L = LANES<Accumulator<T>>;
  const int64_t end = to.maps.channels < c + STRIP * L ? to.maps.channels : c + STRIP * L;
  if (end == c + STRIP * L) return run(Strip<T, MODE, STRIP, All>{to, image, c, All{}});
  for (; c + L <= end; c += L) run(Strip<T, MODE, 1, All>{to, image, c, All{}});
  if (c < end) run(Strip<T, MODE, 1, Some>{to, image, c, Some{end - c}});
}

template <class Run>
void strips(const NormBlock& to, int64_t first, int64_t last, const Run& run) {
  const int64_t count = norm_nhwc_strips(to.maps);
  DDFAST_ELEMENT_SWITCH(to.maps.element, T, {
    const auto chosen = to.pool       ? &strip<T, Mode::pooled, Run>
                        : to.residual ? &strip<T, Mode::residual, Run>
                                      : &strip<T, Mode::plain, Run>;
    for (int64_t i = first; i < last; ++i)
      chosen(to, i / count, i % count * STRIP * LANES<Accumulator<T>>, run);
  })
}

}  // namespace

int64_t norm_nhwc_strips(const BlockMaps& maps) {
  const int64_t wide = STRIP * (maps.element == Element::float64 ? LANES<double> : LANES<float>);
  return (maps.channels + wide - 1) / wide;
}

void norm_nhwc_forward(const NormBlock& to, int64_t first, int64_t last) { strips(to, first, last, FORWARD); }

void norm_nhwc_backward(const NormBlock& to, int64_t first, int64_t last) { strips(to, first, last, BACKWARD); }

}  // namespace ddfast::DDFAST_ISA
