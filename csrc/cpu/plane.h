// SPDX-License-Identifier: Apache-2.0
// One channel of one image, H·W pixels that lie contiguously and fit in the first cache: instance norm, ReLU and pool.
#pragma once

#include "vector.h"

namespace ddfast::DDFAST_ISA {
namespace {

template <class A>
struct Norm {
  A mean, rstd, weight, bias;
  A floor;  // 0 with a ReLU, else −inf

  Norm(A weight_, A bias_, bool relu) : weight(weight_), bias(bias_), floor(relu ? A(0) : A(-__builtin_inf())) {}

  Vec<A> operator()(Vec<A> x) const { return (x - mean) * (rstd * weight) + bias; }
};

// A NaN stays one.
template <class V, class A>
V rectified(V y, A floor) {
  return y < floor ? floor - V{} : y;
}

// total[k] = the sum of what body(j, lanes, sums) adds to sums[k], over all registers of a row.
template <class A, int K, class Body>
void add_up(int64_t size, A (&total)[K], const Body& body) {
  constexpr int CHAINS = 4;  // additions that wait for none of the others
  Vec<A> sums[CHAINS][K] = {};
  int64_t j = 0;
  for (; j + CHAINS * LANES<A> <= size; j += CHAINS * LANES<A>)
    for (int chain = 0; chain < CHAINS; ++chain) body(j + chain * LANES<A>, All{}, sums[chain]);
  columns<A>(size - j, [&](int64_t i, auto lanes) { body(j + i, lanes, sums[0]); });
  for (int k = 0; k < K; ++k) total[k] = sum<A>((sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]));
}

// The squares are of differences from a mean that is rounded, which the sum of the differences makes up for.
template <class T, class A>
void measure(const T* x, int64_t pixels, double eps, Norm<A>& norm) {
  A total[1], differences[2];
  add_up<A>(pixels, total, [&](int64_t j, auto lanes, auto& sums) { sums[0] += load(x + j, lanes); });
  const A mean = total[0] / A(pixels);
  add_up<A>(pixels, differences, [&](int64_t j, auto lanes, auto& sums) {
    const Vec<A> difference = rest(load(x + j, lanes) - mean, lanes, 0);
    sums[0] += difference;
    sums[1] += difference * difference;
  });
  const A drift = differences[0] / A(pixels), variance = differences[1] / A(pixels) - drift * drift;
  norm.mean = mean + drift;
  norm.rstd = A(1 / __builtin_sqrt((variance < 0 ? 0 : variance) + eps));
}

// The averages (H / 2, W / 2) of a plane (H, W), which is used up.
template <class T, class A>
void pool(A* plane, int64_t height, int64_t width, T* out) {
  const int64_t columns_out = width / 2;
  A* to = plane;
  for (int64_t y = 0; y + 2 <= height; y += 2) {
    const A *upper = plane + y * width, *lower = upper + width;
    for (int64_t x = 0; x < columns_out; ++x)  // `to` never gets ahead of what is read
      to[x] = A(0.25) * ((upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1]));
    to += columns_out;
  }
  columns<A>(to - plane, [&](int64_t j, auto lanes) { store(out + j, load(plane + j, lanes), lanes); });
}

// The gradient (H, W) of the plane whose averages have the gradient `grad`.
template <class T, class A>
void unpool(const T* grad, int64_t height, int64_t width, A* line, A* plane) {
  const int64_t columns_out = width / 2;
  for (int64_t y = 0; y < height; ++y) {
    A* row = plane + y * width;
    if (y % 2 == 1) {
      __builtin_memcpy(row, row - width, width * sizeof(A));
    } else if (y + 1 == height) {
      __builtin_memset(row, 0, width * sizeof(A));
    } else {
      const T* from = grad + y / 2 * columns_out;
      columns<A>(columns_out, [&](int64_t j, auto lanes) { store(line + j, A(0.25) * load(from + j, lanes), lanes); });
      for (int64_t x = 0; x < columns_out; ++x) row[2 * x] = row[2 * x + 1] = line[x];
      if (width % 2 == 1) row[width - 1] = 0;
    }
  }
}

// From the gradient of y to that of x, sums of both on the way: {sum g, sum g·(x − mean)·rstd}. `upstream` is a plane to
// work in.
template <class T, class G, class A, class Put>
void differentiate(const T* x, const T* residual, const G* grad, int64_t pixels, const Norm<A>& norm, A* upstream,
                   A (&total)[2], const Put& put) {
  add_up<A>(pixels, total, [&](int64_t j, auto lanes, auto& sums) {
    const Vec<A> value = load(x + j, lanes);
    Vec<A> y = norm(value);
    if (residual) y += load(residual + j, lanes);
    const Vec<A> g = y <= norm.floor ? Vec<A>{} : load(grad + j, lanes);
    store(upstream + j, g, lanes);
    sums[0] += g;
    sums[1] += rest(g * (value - norm.mean), lanes, 0);
  });
  total[1] *= norm.rstd;
  const A shift = total[0] / A(pixels), slope = total[1] / A(pixels) * norm.rstd, scale = norm.weight * norm.rstd;
  columns<A>(pixels, [&](int64_t j, auto lanes) {
    put(j, lanes, scale * (load(upstream + j, lanes) - shift - slope * (load(x + j, lanes) - norm.mean)));
  });
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
