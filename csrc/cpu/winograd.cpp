// SPDX-License-Identifier: Apache-2.0
// F(4x4, 3x3) of Lavin and Gray ("Fast Algorithms for Convolutional Neural Networks", CVPR 2016): 4x4 pixels of the result
// are polynomials of the 6x6 pixels they see, multiplied at 36 points, so that a product takes 36 multiplications and not
// 144. At each point it is a matrix product over the channels:
//     out = A^T [ sum_i (G·g_i·G^T) ⊙ (B^T·d_i·B) ] A
#include "winograd.h"

#include "transpose.h"
#include "winograd_points.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int64_t CHUNK = 16;    // of the depth, summed in registers
constexpr int64_t SIXTEEN = 16;  // channels are whole multiples of it
constexpr int64_t SLAB = 64;     // of the depth, of which a block of the kernel at the points fits a core's cache

// A block of the products is ROWS tiles by COLUMNS registers of channels: its sums, a row of operands and a broadcast fit
// the registers.
constexpr int ROWS = 6, COLUMNS = BYTES == 64 ? 4 : 2;
constexpr int64_t BLOCK = COLUMNS * LANES<float>;

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

// The kernel from SIXTEEN input channels to the outputs `o` and its neighbours at the points: to [POINTS, inputs, outputs],
// rows of `width` outputs, with `stride` from point to point.
template <class T>
void kernel_piece(const Convolution& task, int64_t o, int64_t i0, float* to, int64_t width, int64_t stride) {
  for (int64_t in = 0; in < SIXTEEN; in += LANES<float>) {
    Lanes g[9][LANES<float>];
    read_kernel<T>(task, o, i0 + in, g);
    for (int64_t i = 0; i < LANES<float>; ++i) {
      Lanes taps[9], half[3 * IN], points[POINTS];
      for (int tap = 0; tap < 9; ++tap) taps[tap] = g[tap][i];
      for (int x = 0; x < 3; ++x) kernel_points(taps + x, 3, half + x, 3);              // [6, 3]
      for (int y = 0; y < IN; ++y) kernel_points(half + y * 3, 1, points + y * IN, 1);  // [6, 6]
      for (int p = 0; p < POINTS; ++p) store(to + p * stride + (in + i) * width, points[p]);
    }
  }
}

// Pieces of SIXTEEN by SIXTEEN channels, in the order in which they lie in memory.
template <class T>
void kernel_as(const Convolution& task, int64_t first, int64_t last) {
  const int64_t inner = (task.adjoint ? task.width : task.depth) / SIXTEEN;
  for (int64_t piece = first; piece < last; ++piece) {
    const int64_t a = piece / inner * SIXTEEN, b = piece % inner * SIXTEEN;
    const int64_t o0 = task.adjoint ? b : a, i = task.adjoint ? a : b;
    for (int64_t o = o0; o < o0 + SIXTEEN; o += LANES<float>) {
      const int64_t width = block_width(task, o);
      kernel_piece<T>(task, o, i, task.points + block_at(task, o) + i * width + o % BLOCK, width,
                      stride_of(task.depth, width));
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

// The tiles at the points: to [POINTS, tiles, depth], with `stride` from point to point.
template <class T>
void input_tiles(const Convolution& task, int64_t first, int64_t last, const T* zeros, float* to, int64_t stride) {
  const T* in = static_cast<const T*>(task.in);
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

// What a product sums over: `first` to `last` of the depth, added to what is there unless `first` is 0.
struct Depth {
  int64_t whole, first, last;
};

// R tiles (R, depth) by V registers of output channels (last − first, V·LANES). A sum over all the depth would round twice as
// much as one of sums over CHUNK of it.
template <int R, int V>
void multiply_rows(const float* tiles, const float* kernel, Depth depth, float* to) {
  for (int64_t begin = depth.first; begin < depth.last; begin += CHUNK) {
    Lanes sums[R][V] = {};
    for (int64_t i = begin; i < (begin + CHUNK < depth.last ? begin + CHUNK : depth.last); ++i) {
      Lanes row[V];
      for (int v = 0; v < V; ++v) row[v] = load(kernel + ((i - depth.first) * V + v) * LANES<float>);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] += tiles[r * depth.whole + i] * row[v];
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        float* at = to + (r * V + v) * LANES<float>;
        store(at, begin ? load(at) + sums[r][v] : sums[r][v]);
      }
  }
}

template <int R, int V>
void multiply_some(int64_t rows, const float* tiles, const float* kernel, Depth depth, float* to) {
  if constexpr (R > 0) {
    if (rows < R) return multiply_some<R - 1, V>(rows, tiles, kernel, depth, to);
    multiply_rows<R, V>(tiles, kernel, depth, to);
  }
}

// (tiles, depth) by (depth, width): in the order of the depth, whatever the rows are together with.
template <int V>
void multiply(int64_t registers, int64_t tiles, const float* from, const float* kernel, Depth depth, float* to) {
  if constexpr (V > 0) {
    if (registers < V) return multiply<V - 1>(registers, tiles, from, kernel, depth, to);
    for (int64_t t = 0; t < tiles; t += ROWS) {
      const int64_t rows = tiles - t < ROWS ? tiles - t : ROWS;
      multiply_some<ROWS, V>(rows, from + t * depth.whole, kernel, depth, to + t * V * LANES<float>);
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
  const int64_t tiles = last - first, stride = stride_of(tiles, task.depth);
  float* points = static_cast<float*>(scratch);
  float* products = points + POINTS * stride;
  T* zeros = reinterpret_cast<T*>(products + POINTS * stride_of(tiles, BLOCK));
  __builtin_memset(zeros, 0, task.depth * sizeof(T));
  input_tiles<T>(task, first, last, zeros, points, stride);
  for (int64_t o = 0; o < task.width; o += BLOCK) {
    const int64_t width = block_width(task, o);
    for (int64_t p = 0; p < POINTS; ++p)
      multiply<COLUMNS>(width / LANES<float>, tiles, points + p * stride,
                        task.points + block_at(task, o) + p * stride_of(task.depth, width), {task.depth, 0, task.depth},
                        products + p * stride_of(tiles, width));
    output_tiles<T>(task, first, last, o, width, products);
  }
}

// All tiles at the points, of which these are some.
template <class T>
void inputs_as(const Convolution& task, void* scratch, int64_t first, int64_t last) {
  T* zeros = static_cast<T*>(scratch);
  __builtin_memset(zeros, 0, task.depth * sizeof(T));
  input_tiles<T>(task, first, last, zeros, task.points + first * task.depth, stride_of(task.tiles(), task.depth));
}

// The kernel comes to the points a SLAB of the depth at a time, and is used for all tiles while it is in the cache.
template <class T>
void outputs_as(const Convolution& task, void* scratch, int64_t first, int64_t last) {
  const int64_t tiles = task.tiles();
  float* kernel = static_cast<float*>(scratch);
  float* products = kernel + POINTS * stride_of(SLAB, BLOCK);
  for (int64_t o = first * BLOCK; o < last * BLOCK && o < task.width; o += BLOCK) {
    const int64_t width = block_width(task, o), stride = stride_of(SLAB, width);
    for (int64_t begin = 0; begin < task.depth; begin += SLAB) {
      const int64_t end = begin + SLAB < task.depth ? begin + SLAB : task.depth;
      for (int64_t i = begin; i < end; i += SIXTEEN)
        for (int64_t w = 0; w < width; w += LANES<float>)
          kernel_piece<T>(task, o + w, i, kernel + (i - begin) * width + w, width, stride);
      for (int64_t p = 0; p < POINTS; ++p)
        multiply<COLUMNS>(width / LANES<float>, tiles, task.points + p * stride_of(tiles, task.depth), kernel + p * stride,
                          {task.depth, begin, end}, products + p * stride_of(tiles, width));
    }
    output_tiles<T>(task, 0, tiles, o, width, products);
  }
}

}  // namespace

int64_t winograd_scratch(const Convolution& task, int64_t tiles) {
  return (POINTS * (stride_of(tiles, task.depth) + stride_of(tiles, BLOCK)) + task.depth) * int64_t(sizeof(float));
}

int64_t winograd_outputs_scratch(const Convolution& task) {
  return POINTS * (stride_of(SLAB, BLOCK) + stride_of(task.tiles(), BLOCK)) * int64_t(sizeof(float));
}

int64_t winograd_blocks(const Convolution& task) { return (task.width + BLOCK - 1) / BLOCK; }

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

void winograd_inputs(const Convolution& task, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(task.element, T, {
    if constexpr (!__is_same(T, double)) inputs_as<T>(task, scratch, first, last);
  })
}

void winograd_outputs(const Convolution& task, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(task.element, T, {
    if constexpr (!__is_same(T, double)) outputs_as<T>(task, scratch, first, last);
  })
}

}  // namespace ddfast::DDFAST_ISA
