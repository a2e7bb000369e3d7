// SPDX-License-Identifier: Apache-2.0
// Covariance matching in one launch, from the partials that ddfast.kernels.moments leaves, all about the class's pivot:
//
//     M = pivot + sums/N,   Sigma = (products − sum_p sums·sums^T/N)/N
//     D = M_s − M_r,        Delta = Sigma_s − Sigma_r,        loss = w'·sum_k ||D||² + w·sum_k ||Delta||_F²
//
// A block merges both sides of one PART x PART part of a class's upper triangle, in the order of the splits, and writes
// Delta with its mirror image; blocks on the diagonal also compare the means. The last block to end adds up all of the
// partial squares, in the order of their places: no sum depends on which block was faster.
#pragma once

#include "matching.h"

namespace ddfast {
namespace {

constexpr int PART = 32, ROWS = 8, EACH = PART / ROWS;  // a thread has a column of the part, and EACH of its rows
constexpr int THREADS = PART * ROWS, CHUNK = 16;        // positions of the sums that are multiplied at a time
constexpr int LOADS = 4;  // splits that are read at a time: their loads wait for memory together, not one after another

template <class T>
struct Shared {
  T left[PART][CHUNK + 1], right[PART][CHUNK + 1];  // one more, so that a column is not in one bank
  T tile[PART][PART + 1];
  T reduced[THREADS];
  bool last;
};

__device__ inline int64_t count_of(const Side& side, int64_t k) {
  if (side.counts) return side.counts[k];
  return side.offsets ? side.offsets[k + 1] - side.offsets[k] : side.largest;
}

// A mean or a covariance of a side that is its moments.
__device__ inline double given(const Side& side, const void* values, int64_t at) {
  return side.doubles ? static_cast<const double*>(values)[at] : static_cast<const float*>(values)[at];
}

// The sum over the block, the same for every thread, in a fixed order.
template <class T>
__device__ T block_sum(T value, Shared<T>& shared) {
  const int thread = threadIdx.y * PART + threadIdx.x;
  __syncthreads();
  shared.reduced[thread] = value;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared.reduced[thread] += shared.reduced[thread + half];
  }
  __syncthreads();
  return shared.reduced[0];
}

// Adds `COUNT` rows of elements over the splits, each in the order of the splits; at[r] is null where there is no element.
template <int COUNT, class T>
__device__ void add_splits(const T* (&at)[COUNT], int64_t stride, int64_t splits, T (&sum)[COUNT]) {
  for (int64_t first = 0; first < splits; first += LOADS) {
    T held[LOADS][COUNT];
#pragma unroll
    for (int i = 0; i < LOADS; ++i)
#pragma unroll
      for (int r = 0; r < COUNT; ++r) held[i][r] = at[r] && first + i < splits ? at[r][i * stride] : T(0);
#pragma unroll
    for (int i = 0; i < LOADS; ++i)
#pragma unroll
      for (int r = 0; r < COUNT; ++r) sum[r] += held[i][r];  // past the last split 0, which changes no sum
#pragma unroll
    for (int r = 0; r < COUNT; ++r)
      if (at[r]) at[r] += LOADS * stride;
  }
}

template <class T>
__device__ T total(const Matching& m, const Side& side, int64_t k, int64_t d, int64_t p) {
  const int64_t stride = m.classes * m.descriptors * m.positions;
  const T* at[1] = {nullptr};
  if (d < m.descriptors && p < m.positions)
    at[0] = static_cast<const T*>(m.sums) + side.first_split * stride + (k * m.descriptors + d) * m.positions + p;
  T sum[1] = {};
  add_splits(at, stride, side.splits, sum);
  return sum[0];
}

// Sigma of one side, in part (u, v): row u·PART + threadIdx.y + ROWS·r, column v·PART + threadIdx.x.
template <class T>
__device__ void second_moment(const Matching& m, const Side& side, int64_t k, int u, int v, T (&sigma)[EACH],
                              Shared<T>& shared) {
  const int64_t column = int64_t(v) * PART + threadIdx.x;
  if (side.covariances) {
    for (int r = 0; r < EACH; ++r) {
      const int64_t row = int64_t(u) * PART + threadIdx.y + ROWS * r;
      const int64_t at = (k * m.descriptors + row) * m.descriptors + column;
      sigma[r] = row < m.descriptors && column < m.descriptors ? T(given(side, side.covariances, at)) : T(0);
    }
    return;
  }
  const int i = u * PART / m.block, j = v * PART / m.block;
  const int64_t area = int64_t(m.block) * m.block;
  const int64_t stride = m.classes * m.tiles * area;
  const T* tile = static_cast<const T*>(m.products) + side.first_split * stride + (k * m.tiles + j * (j + 1) / 2 + i) * area;
  const T* at[EACH];
  for (int r = 0; r < EACH; ++r) {
    const int64_t row = int64_t(u) * PART + threadIdx.y + ROWS * r;
    const bool inside = row < int64_t(i + 1) * m.block && column < int64_t(j + 1) * m.block;
    at[r] = inside ? tile + row % m.block * m.block + column % m.block : nullptr;
    sigma[r] = 0;
  }
  add_splits(at, stride, side.splits, sigma);
  T square[EACH] = {};
  for (int64_t start = 0; start < m.positions; start += CHUNK) {
    __syncthreads();
    for (int at = threadIdx.y * PART + threadIdx.x; at < PART * CHUNK; at += THREADS) {
      shared.left[at / CHUNK][at % CHUNK] = total<T>(m, side, k, int64_t(u) * PART + at / CHUNK, start + at % CHUNK);
      shared.right[at / CHUNK][at % CHUNK] = total<T>(m, side, k, int64_t(v) * PART + at / CHUNK, start + at % CHUNK);
    }
    __syncthreads();
    for (int c = 0; c < CHUNK; ++c)
      for (int r = 0; r < EACH; ++r) square[r] += shared.left[threadIdx.y + ROWS * r][c] * shared.right[threadIdx.x][c];
  }
  const int64_t count = count_of(side, k);
  const T per_row = T(1) / T(count > 0 ? count : 1);
  for (int r = 0; r < EACH; ++r) sigma[r] = (sigma[r] - square[r] * per_row) * per_row;
}

// The mean of one side at (d, p), and what rounding took off it.
template <class T, class Feature>
__device__ T mean_of(const Matching& m, const Side& side, int64_t k, int64_t d, int64_t p, T& rest) {
  const int64_t count = count_of(side, k), first = side.offsets ? side.offsets[k] : k * side.largest;
  T pivot = 0;
  if (count > 0) {
    const int64_t row = side.index ? side.index[first] : first;
    const int64_t at = row * side.stride_n + d / m.b * side.stride_a + d % m.b * side.stride_b + p * side.stride_p;
    pivot = T(static_cast<const Feature*>(side.features)[at]);
    if (!(pivot - pivot == T(0))) pivot = 0;  // as in moments: neither infinity nor NaN is a pivot
  }
  const T shift = total<T>(m, side, k, d, p) * (T(1) / T(count > 0 ? count : 1));
  const T mean = pivot + shift, rounded = mean - pivot;  // Knuth's two-sum
  rest = (pivot - (mean - rounded)) + (shift - rounded);
  if (!(rest - rest == T(0))) rest = 0;
  return mean;
}

template <class T, class Feature>
__global__ void __launch_bounds__(THREADS, 2) match(const Matching m) {
  __shared__ Shared<T> shared;
  const int64_t k = blockIdx.x / m.parts, d = m.descriptors, positions = m.positions;
  const int part = blockIdx.x % m.parts;
  int v = 0;  // part = v·(v + 1)/2 + u where there are products, else the diagonal's
  while (m.products && (v + 1) * (v + 2) / 2 <= part) ++v;
  if (!m.products) v = part;
  const int u = m.products ? part - v * (v + 1) / 2 : part;
  const int64_t count = count_of(m.syn, k);
  const bool matched = count > 0 && count_of(m.real, k) > 0;
  T *squares = static_cast<T*>(m.squares), *share = static_cast<T*>(m.share);
  if (share && part == 0 && threadIdx.x == 0 && threadIdx.y == 0) share[k] = matched ? T(1) / T(count) : T(0);

  T distance = 0;
  if (m.products) {
    T delta[EACH], real[EACH];
    second_moment<T>(m, m.syn, k, u, v, delta, shared);
    second_moment<T>(m, m.real, k, u, v, real, shared);
    const int64_t column = int64_t(v) * PART + threadIdx.x;
    T* gap = static_cast<T*>(m.covariance_gap);
    __syncthreads();
    for (int r = 0; r < EACH; ++r) {
      const int64_t row = int64_t(u) * PART + threadIdx.y + ROWS * r;
      const bool inside = row < d && column < d;
      delta[r] = matched && inside ? delta[r] - real[r] : T(0);
      distance += (u == v ? T(1) : T(2)) * delta[r] * delta[r];
      if (gap && inside) gap[(k * d + row) * d + column] = delta[r];
      shared.tile[threadIdx.y + ROWS * r][threadIdx.x] = delta[r];
    }
    __syncthreads();
    for (int r = 0; r < EACH && gap && u != v; ++r) {  // the mirror image, written along its rows
      const int64_t row = int64_t(v) * PART + threadIdx.y + ROWS * r, mirrored = int64_t(u) * PART + threadIdx.x;
      if (row < d && mirrored < d)
        gap[(k * d + row) * d + mirrored] = shared.tile[threadIdx.x][threadIdx.y + ROWS * r];
    }
    distance = block_sum<T>(distance, shared);
    if (threadIdx.x == 0 && threadIdx.y == 0) squares[(m.classes + k) * m.parts + part] = distance;
  }

  T apart = 0;
  if (u == v && (m.mean_weight != 0 || m.centers)) {
    for (int64_t at = threadIdx.y * PART + threadIdx.x; at < PART * positions; at += THREADS) {
      const int64_t row = int64_t(u) * PART + at / positions, p = at % positions, place = (k * d + row) * positions + p;
      if (row >= d) continue;
      T rest, other_rest = 0;
      const T mean = mean_of<T, Feature>(m, m.syn, k, row, p, rest);
      if (m.centers) static_cast<T*>(m.centers)[place] = mean, static_cast<T*>(m.drift)[place] = rest;
      if (m.mean_weight == 0) continue;
      T gap;
      if (m.real.means) {  // float64 means against float32 features keep their digits
        gap = T((double(mean) - given(m.real, m.real.means, place)) + double(rest));
      } else {
        const T other = mean_of<T, Feature>(m, m.real, k, row, p, other_rest);
        gap = (mean - other) + (rest - other_rest);
      }
      if (!matched) gap = 0;
      if (m.mean_gap) static_cast<T*>(m.mean_gap)[place] = gap;
      apart += gap * gap;
    }
  }
  if (m.mean_weight != 0) {
    apart = block_sum<T>(apart, shared);
    if (threadIdx.x == 0 && threadIdx.y == 0) squares[k * m.parts + part] = apart;
  }

  if (threadIdx.x == 0 && threadIdx.y == 0) {
    __threadfence();
    shared.last = atomicAdd(m.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  T terms[2] = {};
  const int64_t each = m.classes * m.parts;
  for (int term = 0; term < 2; ++term) {
    if ((term == 0 ? m.mean_weight : m.covariance_weight) == 0) continue;
    T sum = 0;
    for (int64_t at = threadIdx.y * PART + threadIdx.x; at < each; at += THREADS) sum += __ldcg(squares + term * each + at);
    terms[term] = block_sum<T>(sum, shared);
  }
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    static_cast<T*>(m.terms)[0] = terms[0], static_cast<T*>(m.terms)[1] = terms[1];
    *static_cast<T*>(m.loss) = T(m.mean_weight) * terms[0] + T(m.covariance_weight) * terms[1];
    *m.ticket = 0;
  }
}

}  // namespace
}  // namespace ddfast
