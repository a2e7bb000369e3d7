// SPDX-License-Identifier: Apache-2.0
// F(4x4, 3x3) of Lavin and Gray ("Fast Algorithms for Convolutional Neural Networks", CVPR 2016): 4x4 pixels of the result
// are polynomials of the 6x6 pixels they see, multiplied at 36 points, so that a product takes 36 multiplications and not
// 144. At each point it is a matrix product over the channels:
//     out = A^T [ sum_i (G·g_i·G^T) ⊙ (B^T·d_i·B) ] A
// The points 0, ±5/8, ±5/4 and infinity, instead of 0, ±1, ±2, halve the error.
#include "winograd.h"

#include "transpose.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int OUT = 4, IN = 6, POINTS = IN * IN;
constexpr int64_t CHUNK = 16;    // of the depth, summed in registers
constexpr int64_t SIXTEEN = 16;  // channels are whole multiples of it

// A block of the products is ROWS tiles by COLUMNS registers of channels: its sums, a row of operands and a broadcast fit
// the registers.
constexpr int ROWS = 6, COLUMNS = BYTES == 64 ? 4 : 2;
constexpr int64_t BLOCK = COLUMNS * LANES<float>;

using Lanes = Vec<float>;
constexpr float P = 0.625f, Q = 1.25f, P2 = P * P, Q2 = Q * Q;

// B^T of six, `step` apart
inline void input_points(Lanes* d, int step) {
  const Lanes d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Lanes even_p = d4 - Q2 * d2, odd_p = P * (d3 - Q2 * d1), even_q = d4 - P2 * d2, odd_q = Q * (d3 - P2 * d1);
  d[0] = P2 * Q2 * d0 - (P2 + Q2) * d2 + d4;
  d[step] = even_p + odd_p;
  d[2 * step] = even_p - odd_p;
  d[3 * step] = even_q + odd_q;
  d[4 * step] = even_q - odd_q;
  d[5 * step] = P2 * Q2 * d1 - (P2 + Q2) * d3 + d5;
}

// G of three, `step` apart, to six that are `to_step` apart
inline void kernel_points(const Lanes* g, int step, Lanes* to, int to_step) {
  constexpr float AT_P = 1 / (2 * P2 * (P2 - Q2)), AT_Q = 1 / (2 * Q2 * (Q2 - P2)), AT_0 = 1 / (P2 * Q2);
  const Lanes g0 = g[0], g1 = g[step], g2 = g[2 * step];
  const Lanes even_p = AT_P * (g0 + P2 * g2), odd_p = AT_P * P * g1, even_q = AT_Q * (g0 + Q2 * g2), odd_q = AT_Q * Q * g1;
  to[0] = AT_0 * g0;
  to[to_step] = even_p + odd_p;
  to[2 * to_step] = even_p - odd_p;
  to[3 * to_step] = even_q + odd_q;
  to[4 * to_step] = even_q - odd_q;
  to[5 * to_step] = g2;
}

// A^T of six, `step` apart; four are left
inline void output_pixels(Lanes* m, int step) {
  const Lanes both_p = m[step] + m[2 * step], odd_p = m[step] - m[2 * step];
  const Lanes both_q = m[3 * step] + m[4 * step], odd_q = m[3 * step] - m[4 * step];
  m[0] = m[0] + both_p + both_q;
  m[step] = P * odd_p + Q * odd_q;
  m[2 * step] = P2 * both_p + Q2 * both_q;
  m[3 * step] = P * P2 * odd_p + Q * Q2 * odd_q + m[5 * step];
}

// From one point to the next: a cache line more than its numbers, which else would all fall upon one another in the cache.
inline int64_t stride_of(int64_t tiles, int64_t channels) { return tiles * channels + 16; }

// Where the block of output channel `o` begins among the kernel's points: blocks lie one after another, each (POINTS, depth,
// channels of the block) and padded likewise.
inline int64_t block_at(const Convolution& task, int64_t o) {
  return o / BLOCK * POINTS * stride_of(task.depth, BLOCK);
}
inline int64_t block_width(const Convolution& task, int64_t o) {
  const int64_t left = task.width - o / BLOCK * BLOCK;
  return left < BLOCK ? left : BLOCK;
}

// g[tap][i] = the kernel from input channel i0 + i to the outputs o and its neighbours, a lane each.
template <class T>
void read_kernel(const Convolution& task, int64_t o, int64_t i0, Lanes (*g)[LANES<float>]) {
  const T* kernel = static_cast<const T*>(task.kernel);
  for (int tap = 0; tap < 9; ++tap) {
    for (int i = 0; i < LANES<float>; ++i)
      g[tap][i] = load(task.adjoint ? kernel + ((i0 + i) * 9 + 8 - tap) * task.width + o
                                    : kernel + ((o + i) * 9 + tap) * task.depth + i0);
    if (!task.adjoint) transpose<float>(g[tap]);
  }
}

// Pieces of SIXTEEN by SIXTEEN channels, in the order in which they lie in memory.
template <class T>
void kernel_as(const Convolution& task, int64_t first, int64_t last) {
  const int64_t inner = (task.adjoint ? task.width : task.depth) / SIXTEEN;
  for (int64_t piece = first; piece < last; ++piece) {
    const int64_t a = piece / inner * SIXTEEN, b = piece % inner * SIXTEEN, o0 = task.adjoint ? b : a;
    for (int64_t i0 = task.adjoint ? a : b, i1 = i0 + SIXTEEN; i0 < i1; i0 += LANES<float>) {
      for (int64_t o = o0; o < o0 + SIXTEEN; o += LANES<float>) {
        Lanes g[9][LANES<float>];
        read_kernel<T>(task, o, i0, g);
        const int64_t width = block_width(task, o), stride = stride_of(task.depth, width);
        float* to = task.points + block_at(task, o) + i0 * width + o % BLOCK;
        for (int64_t i = 0; i < LANES<float>; ++i) {
          Lanes taps[9], half[3 * IN], points[POINTS];
          for (int tap = 0; tap < 9; ++tap) taps[tap] = g[tap][i];
          for (int x = 0; x < 3; ++x) kernel_points(taps + x, 3, half + x, 3);              // [6, 3]
          for (int y = 0; y < IN; ++y) kernel_points(half + y * 3, 1, points + y * IN, 1);  // [6, 6]
          for (int p = 0; p < POINTS; ++p) store(to + p * stride + i * width, points[p]);
        }
      }
    }
  }
}

// Where a tile lies.
struct Place {
  int64_t image, y, x;

  Place(const Convolution& task, int64_t tile) {
    const int64_t across = (task.image_width + OUT - 1) / OUT, down = (task.height + OUT - 1) / OUT;
    image = tile / (across * down);
    y = tile / across % down * OUT;
    x = tile % across * OUT;
  }
};

// The tiles at the points: to [POINTS, tiles, depth], padded as `stride_of` says.
template <class T>
void input_tiles(const Convolution& task, int64_t first, int64_t last, const T* zeros, float* to) {
  const T* in = static_cast<const T*>(task.in);
  const int64_t stride = stride_of(last - first, task.depth);
  for (int64_t tile = first; tile < last; ++tile) {
    const Place at(task, tile);
    const T* pixels[POINTS];
    for (int p = 0; p < POINTS; ++p) {
      const int64_t y = at.y + p / IN - 1, x = at.x + p % IN - 1;
      const bool inside = 0 <= y && y < task.height && 0 <= x && x < task.image_width;
      pixels[p] = inside ? in + ((at.image * task.height + y) * task.image_width + x) * task.depth : zeros;
    }
    for (int64_t i = 0; i < task.depth; i += LANES<float>) {
      Lanes d[POINTS];
#pragma GCC unroll 36
      for (int p = 0; p < POINTS; ++p) d[p] = load(pixels[p] + i);
#pragma GCC unroll 6
      for (int x = 0; x < IN; ++x) input_points(d + x, IN);
#pragma GCC unroll 6
      for (int y = 0; y < IN; ++y) input_points(d + y * IN, 1);
#pragma GCC unroll 36
      for (int p = 0; p < POINTS; ++p) store(to + p * stride + (tile - first) * task.depth + i, d[p]);
    }
  }
}

// R tiles (R, depth) by V registers of output channels (depth, V·LANES). A sum over all the depth would round twice as much
// as one of sums over CHUNK of it.
template <int R, int V>
void multiply_rows(const float* tiles, const float* kernel, int64_t depth, float* to) {
  for (int64_t begin = 0; begin < depth; begin += CHUNK) {
    Lanes sums[R][V] = {};
    for (int64_t i = begin; i < (begin + CHUNK < depth ? begin + CHUNK : depth); ++i) {
      Lanes row[V];
      for (int v = 0; v < V; ++v) row[v] = load(kernel + (i * V + v) * LANES<float>);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] += tiles[r * depth + i] * row[v];
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        float* at = to + (r * V + v) * LANES<float>;
        store(at, begin ? load(at) + sums[r][v] : sums[r][v]);
      }
  }
}

template <int R, int V>
void multiply_some(int64_t rows, const float* tiles, const float* kernel, int64_t depth, float* to) {
  if constexpr (R > 0) {
    if (rows < R) return multiply_some<R - 1, V>(rows, tiles, kernel, depth, to);
    multiply_rows<R, V>(tiles, kernel, depth, to);
  }
}

// (tiles, depth) by (depth, width): in the order of the depth, whatever the rows are together with.
template <int V>
void multiply(int64_t registers, int64_t tiles, const float* from, const float* kernel, int64_t depth, float* to) {
  if constexpr (V > 0) {
    if (registers < V) return multiply<V - 1>(registers, tiles, from, kernel, depth, to);
    for (int64_t t = 0; t < tiles; t += ROWS) {
      const int64_t rows = tiles - t < ROWS ? tiles - t : ROWS;
      multiply_some<ROWS, V>(rows, from + t * depth, kernel, depth, to + t * V * LANES<float>);
    }
  }
}

// From products [POINTS, tiles, width], padded likewise, of the channels `o` and its neighbours to pixels.
template <class T>
void output_tiles(const Convolution& task, int64_t first, int64_t last, int64_t o, int64_t width, const float* from) {
  const int64_t stride = stride_of(last - first, width);
  for (int64_t tile = first; tile < last; ++tile) {
    const Place at(task, tile);
    T* to = static_cast<T*>(task.out) + ((at.image * task.height + at.y) * task.image_width + at.x) * task.width + o;
    const int64_t rows = task.height - at.y < OUT ? task.height - at.y : OUT;
    const int64_t columns = task.image_width - at.x < OUT ? task.image_width - at.x : OUT;
    for (int64_t l = 0; l < width; l += LANES<float>) {
      Lanes m[POINTS];
#pragma GCC unroll 36
      for (int p = 0; p < POINTS; ++p) m[p] = load(from + p * stride + (tile - first) * width + l);
#pragma GCC unroll 6
      for (int x = 0; x < IN; ++x) output_pixels(m + x, IN);
#pragma GCC unroll 4
      for (int y = 0; y < OUT; ++y) output_pixels(m + y * IN, 1);
      const Lanes bias = task.bias ? load(static_cast<const T*>(task.bias) + o + l) : Lanes{};
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = 0; x < columns; ++x)
          store(to + (y * task.image_width + x) * task.width + l, m[y * IN + x] + bias);
    }
  }
}

template <class T>
void tiles_as(const Convolution& task, void* scratch, int64_t first, int64_t last) {
  const int64_t tiles = last - first;
  float* points = static_cast<float*>(scratch);
  float* products = points + POINTS * stride_of(tiles, task.depth);
  T* zeros = reinterpret_cast<T*>(products + POINTS * stride_of(tiles, BLOCK));
  __builtin_memset(zeros, 0, task.depth * sizeof(T));
  input_tiles<T>(task, first, last, zeros, points);
  for (int64_t o = 0; o < task.width; o += BLOCK) {
    const int64_t width = block_width(task, o);
    for (int64_t p = 0; p < POINTS; ++p)
      multiply<COLUMNS>(width / LANES<float>, tiles, points + p * stride_of(tiles, task.depth),
                        task.points + block_at(task, o) + p * stride_of(task.depth, width), task.depth,
                        products + p * stride_of(tiles, width));
    output_tiles<T>(task, first, last, o, width, products);
  }
}

}  // namespace

int64_t winograd_scratch(const Convolution& task, int64_t tiles) {
  return (POINTS * (stride_of(tiles, task.depth) + stride_of(tiles, BLOCK)) + task.depth) * int64_t(sizeof(float));
}

void winograd_kernel(const Convolution& task, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(task.element, T, {
    if constexpr (!__is_same(T, double)) kernel_as<T>(task, first, last);
  })
}

void winograd_tiles(const Convolution& task, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(task.element, T, {
    if constexpr (!__is_same(T, double)) tiles_as<T>(task, scratch, first, last);
  })
}

}  // namespace ddfast::DDFAST_ISA
