// SPDX-License-Identifier: Apache-2.0
// Sums and second moments of every class about its pivot on Hopper, the partials of ddfast.kernels.moments to the letter.
//
//     y = x − pivot,   sums = sum_n y,   products = sum_n y·y^T = S + S^T,   S = sum_n (hi·hi^T/2 + hi·lo^T)
//
// hi is y·scale rounded to a half and lo what is left, rounded to a half; scale is a power of two that brings a program's
// first rows to a thousand and is made smaller when a later row does not fit. Both halves have 11 bits, as those of TF32
// have, at twice the rate.
//
// A block of two warpgroups makes one program's partials, STEP rows at a time. Bulk copies bring rows STAGES steps ahead.
// A thread has 8 of a row's numbers, always the same (channel, position): it keeps their pivot and their sums, and its hi
// are its fragment of the left operand. The right one lies in shared memory twice, so that rows are converted while the
// products of the step before are under way. Tensor cores truncate their sums: each step has fresh ones, which are added
// to those of the program by ordinary additions.
#pragma once

#include "moments_hopper.h"

namespace ddfast {
namespace {

constexpr int CHANNELS = 128, POSITIONS = 16, ROW = CHANNELS * POSITIONS;
constexpr int STEP = 4, STAGES = 4, WARPS = 8;
constexpr int PITCH = CHANNELS + 1, PART_OF_MERGE = 32;
constexpr uint32_t TOO_LARGE = 0x7800;  // 2^15 as a half
constexpr uint32_t INFINITE = 0x7f800000;

// An operand of products, (STEP, 2, CHANNELS/8) core matrices of 8 channels by 8 halves: those of row r begin at
// r·2·CHANNELS/8, then come the positions' halves, then the channels. A warp's store fills one core matrix.
using Operand = uint32_t[STEP * 2 * CHANNELS / 8][8][4];

struct alignas(128) HopperShared {
  union {
    float rows[STAGES][STEP][ROW];
    float tile[CHANNELS][PITCH];  // when all rows are done
  };
  Operand hi[2], lo[2];
  uint64_t arrival[STAGES];
  unsigned largest;
};

struct alignas(16) Four {
  float value[4];
};

// Which numbers of a row are the thread's: 4 positions of `channel` and 4 of channel + 8. Positions 4·quad to 4·quad + 3
// are the products' 2·quad, 2·quad + 1, 2·quad + 8 and 2·quad + 9, on both sides, so that a thread reads 16 bytes.
struct Place {
  int warp, row, quad;

  __device__ int channel(int number) const { return 16 * warp + row + number / 4 * 8; }
  __device__ int at(int number) const { return channel(number) * POSITIONS + 4 * quad; }
};

__device__ inline int64_t row_at(const Rows& side, int64_t position) {
  return side.index ? side.index[position] : position;
}

// The address of row r of an operand with its strides, in units of 16 bytes; no swizzle.
__device__ inline uint64_t descriptor(const Operand& operand, int r) {
  constexpr uint64_t ALONG_POSITIONS = CHANNELS / 8 * 8, ALONG_CHANNELS = 8;
  const uint64_t start = shared_address(operand[r * 2 * CHANNELS / 8]) >> 4;
  return start | ALONG_POSITIONS << 16 | ALONG_CHANNELS << 32;
}

__device__ inline void load_eight(float (&to)[8], const float* row, const Place& place) {
  for (int e = 0; e < 8; e += 4) {
    const Four four = *reinterpret_cast<const Four*>(row + place.at(e));
    for (int i = 0; i < 4; ++i) to[e + i] = four.value[i];
  }
}

// The thread's two halves of row r: of its first or last two positions, of `channel` or of channel + 8.
__device__ inline uint32_t& word(Operand& operand, const Place& place, int r, int last, int second) {
  return operand[(r * 2 + last) * (CHANNELS / 8) + 2 * place.warp + second][place.row][place.quad];
}

// Makes both operands of a step; zeros after `met` rows. The largest hi of the thread's in both places.
template <bool ADDED>
__device__ uint32_t convert(const float (&rows)[STEP][ROW], int met, float scale, const Place& place,
                            const float (&pivot)[8], float (&sums)[8], Operand& hi, Operand& lo) {
  uint32_t largest = 0;
#pragma unroll
  for (int r = 0; r < STEP; ++r) {
    float y[8];
    load_eight(y, rows[r], place);
    for (int e = 0; e < 8; ++e) {
      y[e] = r < met ? y[e] - pivot[e] : 0.0f;
      if (ADDED) sums[e] += y[e];
      y[e] *= scale;
    }
    for (int pair = 0; pair < 4; ++pair) {
      const float first = y[2 * pair], second = y[2 * pair + 1];
      const uint32_t high = halves(first, second);
      const uint32_t low = halves(first - first_half(high), second - second_half(high));
      word(hi, place, r, pair % 2, pair / 2) = high;
      word(lo, place, r, pair % 2, pair / 2) = doubled_halves(low);
      largest = larger_halves(largest, high);
    }
  }
  return largest;
}

// The bits of the block's largest finite |y| of a step.
__device__ inline unsigned largest_of(const float (&rows)[STEP][ROW], int met, const Place& place,
                                      const float (&pivot)[8], unsigned& shared) {
  unsigned largest = 0;
  for (int r = 0; r < met; ++r) {
    float y[8];
    load_eight(y, rows[r], place);
    for (int e = 0; e < 8; ++e) {
      const unsigned bits = __float_as_uint(y[e] - pivot[e]) & 0x7fffffff;
      if (bits < INFINITE && bits > largest) largest = bits;
    }
  }
  if (threadIdx.x == 0) shared = 0;
  __syncthreads();
  atomicMax(&shared, largest);
  __syncthreads();
  return shared;
}

// Both are powers of two: with the scale, a value of these bits comes to lie in [2^9, 2^10); and 1/(2·scale²).
__device__ inline void rescale(unsigned largest, float& scale, float& inverse) {
  const int exponent = min(max(263 - int(largest >> 23), 127 - 60), 127 + 60);
  scale = __uint_as_float(unsigned(exponent) << 23);
  inverse = __uint_as_float(unsigned(380 - 2 * exponent) << 23);
}

__device__ inline void add_part(float (&total)[64], const float (&part)[64], float inverse) {
#pragma unroll
  for (int i = 0; i < 64; ++i) total[i] = fmaf(part[i], inverse, total[i]);
}

__device__ void moments(const Moments& m, int64_t program, HopperShared& shared) {
  const int thread = threadIdx.x;
  const Place place{thread / 32, thread % 32 / 4, thread % 4};
  const int64_t k = program % m.classes, split = program / m.classes;
  const Rows& side = split < m.real.splits ? m.real : m.syn;
  const int64_t begin = side.offsets ? side.offsets[k] : k * side.largest;
  const int64_t count = side.offsets ? side.offsets[k + 1] - begin : side.largest;
  const int64_t first = (split < m.real.splits ? split : split - m.real.splits) * side.rows;
  const int64_t left_over = count - first;
  const int rows = int(left_over < side.rows ? (left_over > 0 ? left_over : 0) : side.rows);
  const int steps = (rows + STEP - 1) / STEP;
  if (m.ticket && program == 0 && thread == 0) *m.ticket = 0;

  // One warp asks for the rows; which they are it looks up a step before.
  auto wanted = [&](int step) {
    const int position = step * STEP + thread;
    return thread < STEP && position < rows ? row_at(side, begin + first + position) : 0;
  };
  auto fetch = [&](int step, int64_t row) {
    const int stage = step % STAGES, met = min(STEP, rows - step * STEP);
    if (thread == 0) arrival_expect(&shared.arrival[stage], uint32_t(met * ROW * sizeof(float)));
    __syncwarp();
    if (thread < met)
      bulk_copy(shared.rows[stage][thread], side.features + row * side.stride, ROW * sizeof(float),
                &shared.arrival[stage]);
  };
  if (thread == 0)
    for (uint64_t& arrival : shared.arrival) arrival_init(&arrival);
  for (int i = 0; i < 4; ++i) word(shared.hi[1], place, 0, i / 2, i % 2) = 0;
  publish();
  __syncthreads();
  if (place.warp == 0)
    for (int step = 0; step < min(STAGES, steps); ++step) fetch(step, wanted(step));
  int64_t next = place.warp == 0 ? wanted(STAGES) : 0;

  float pivot[8] = {}, sums[8] = {};
  if (count > 0) load_eight(pivot, side.features + row_at(side, begin) * side.stride, place);
  for (float& value : pivot)
    if (!(fabsf(value) < __uint_as_float(INFINITE))) value = 0;  // as in ddfast.kernels.moments

  float part[64], total[64] = {}, scale = 1, inverse = 0.5f;
  uint32_t left[STEP][4] = {};
  bool scaled = false;
  products_begin();
  multiply(part, left[0], descriptor(shared.hi[1], 0), false);  // zeros, so that there always is a step before
  products_commit();
  for (int step = 0; step < steps; ++step) {
    const int stage = step % STAGES, buffer = step % 2, met = min(STEP, rows - step * STEP);
    arrival_wait(&shared.arrival[stage], step / STAGES % 2);
    const uint32_t hi =
        convert<true>(shared.rows[stage], met, scale, place, pivot, sums, shared.hi[buffer], shared.lo[buffer]);
    publish();
    products_end(part, left);  // those of the step before
    add_part(total, part, inverse);
    if (__syncthreads_or(!scaled || (hi & 0x7fff) >= TOO_LARGE || (hi >> 16 & 0x7fff) >= TOO_LARGE)) {
      const unsigned largest = largest_of(shared.rows[stage], met, place, pivot, shared.largest);
      scaled = largest > 0;
      if (scaled) rescale(largest, scale, inverse);
      convert<false>(shared.rows[stage], met, scale, place, pivot, sums, shared.hi[buffer], shared.lo[buffer]);
      publish();
      __syncthreads();
    }
    if (place.warp == 0 && step + STAGES < steps) {
      fetch(step + STAGES, next);
      next = wanted(step + STAGES + 1);
    }
    for (int r = 0; r < STEP; ++r)  // what it wrote itself; kept in registers, it would be written while products run
      for (int i = 0; i < 4; ++i) left[r][i] = word(shared.hi[buffer], place, r, i / 2, i % 2);
    products_begin();
#pragma unroll
    for (int r = 0; r < STEP; ++r) multiply(part, left[r], descriptor(shared.lo[buffer], r), r > 0);
#pragma unroll
    for (int r = 0; r < STEP; ++r) multiply(part, left[r], descriptor(shared.hi[buffer], r), true);
    products_commit();
  }
  products_end(part, left);
  add_part(total, part, inverse);

  float* const to_sums = m.sums + program * ROW;
  for (int e = 0; e < 8; e += 4)
    *reinterpret_cast<Four*>(to_sums + place.at(e)) = {{sums[e], sums[e + 1], sums[e + 2], sums[e + 3]}};
  for (int i = 0; i < 64; ++i)
    shared.tile[place.channel(i % 4 / 2 * 4)][i / 4 * 8 + 2 * place.quad + i % 2] = total[i];
  __syncthreads();
  float* const to_products = m.products + program * CHANNELS * CHANNELS;
  for (int c = place.warp; c < CHANNELS; c += WARPS)
    for (int e = c / PART_OF_MERGE * PART_OF_MERGE + thread % 32; e < CHANNELS; e += 32)  // the parts that merge reads
      to_products[c * CHANNELS + e] = shared.tile[c][e] + shared.tile[e][c];
}

}  // namespace
}  // namespace ddfast
