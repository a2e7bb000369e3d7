// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of images, instance norm, ReLU and pool, a few channels of an image at a time: their map stays in the
// first cache from the convolution to the averages, and backward makes it once more. With z = sum_{i,j} k_ij·x_{y+i,x+j}
// the gradient of the images is dL/dx_{y,x} = sum over channels and i, j of k_ij·(dL/dz)_{y−i,x−j}; dL/dz: norm_nchw.cpp.
#include "blocks.h"
#include "plane.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// What a thread works in. Rows are computed in whole registers: what is too much of one is written before the next row
// is, and behind the last there is room for it.
template <class A>
struct Work {
  static constexpr int L = LANES<A>, SLACK = 2 * L;

  const ConvBlock& to;
  const int64_t colours = to.images.channels, height = to.images.height, width = to.images.width;
  const int64_t padded_height = height + 2 * to.padding, padded_width = width + 2 * to.padding;
  const int64_t map_height = padded_height - 2, map_width = padded_width - 2, pixels = map_height * map_width;
  const int64_t averages = (map_height / 2) * (map_width / 2);
  // The gradient of a map with the border of zeros that is read with it, and where the pixels start that are read.
  const int64_t border = larger(0, 2 - to.padding), inset = larger(0, to.padding - 2);
  const int64_t bordered_width = map_width + 2 * border;
  const int64_t gradient_width = (width + L - 1) / L * L;

  const int64_t image_size = colours * padded_height * padded_width + SLACK, map_size = pixels + SLACK;
  const int64_t bordered_size = (map_height + 2 * border) * bordered_width + SLACK;
  const int64_t gradient_size = colours * height * gradient_width;

  A* image = nullptr;     // (c, H + 2p, W + 2p)
  A* maps = nullptr;      // (TILE, H', W')
  A* line = nullptr;      // averages, or a row of the images, in whichever type
  A* spread = nullptr;    // (H', W')
  A* upstream = nullptr;  // (H', W')
  A* bordered = nullptr;  // (TILE, H' + 2b, W' + 2b)
  A* gradient = nullptr;  // (c, H, W rounded up)

  int64_t size() const {
    return image_size + (CONV_TILE + 3) * map_size + larger(averages, width) + SLACK + CONV_TILE * bordered_size + gradient_size;
  }
  void place(void* scratch) {
    image = static_cast<A*>(scratch);
    maps = image + image_size;
    spread = maps + CONV_TILE * map_size;
    upstream = spread + map_size;
    bordered = upstream + map_size;
    gradient = bordered + CONV_TILE * bordered_size;
    line = gradient + gradient_size;
    for (A* it = image; it < maps; ++it) *it = 0;
    for (A* it = bordered; it < gradient; ++it) *it = 0;
  }
};

// An image into the middle of its border of zeros.
template <class T, class A>
void pad(const Work<A>& work, int64_t n) {
  const ConvBlock& to = work.to;
  const int64_t width = work.width, colours = work.colours;
  const T* pixels = static_cast<const T*>(to.pixels) + n * colours * work.height * width;
  T* line = reinterpret_cast<T*>(work.line);
  for (int64_t i = 0; i < colours; ++i)
    for (int64_t y = 0; y < work.height; ++y) {
      const T* from = pixels + (i * work.height + y) * width;
      if (to.images.channels_last) {
        for (int64_t x = 0; x < width; ++x) line[x] = pixels[(y * width + x) * colours + i];
        from = line;
      }
      A* row = work.image + (i * work.padded_height + y + to.padding) * work.padded_width + to.padding;
      columns<A>(width, [&](int64_t j, auto lanes) { store(row + j, load(from + j, lanes), lanes); });
    }
}

template <int V>
struct Registers {
  static constexpr int COUNT = V;
};

// Calls body(x, Registers<V>) for V registers from column x on, over a row.
template <class A, class Body>
void registers(int64_t width, const Body& body) {
  int64_t x = 0;
  for (; width - x > LANES<A>; x += 2 * LANES<A>) body(x, Registers<2>{});
  if (x < width) body(x, Registers<1>{});
}

// The maps of CONV_TILE channels, whose kernels (c, 3, 3) follow one another.
template <class A>
void convolve(const Work<A>& work, const A* kernels) {
  const int64_t taps = 9 * work.colours, width = work.padded_width;
  auto some = [&](const A* from, A* to, auto count) {
    constexpr int V = decltype(count)::COUNT;
    Vec<A> sums[CONV_TILE][V] = {};
    const A* tap = kernels;
    for (int64_t i = 0; i < work.colours; ++i, from += work.padded_height * width)
      for (int64_t j = 0; j < 9; ++j, ++tap) {
        const A* at = from + j / 3 * width + j % 3;
        Vec<A> pixels[V];
        for (int v = 0; v < V; ++v) pixels[v] = load(at + v * LANES<A>);
        for (int k = 0; k < CONV_TILE; ++k)
          for (int v = 0; v < V; ++v) sums[k][v] += tap[k * taps] * pixels[v];
      }
    for (int k = 0; k < CONV_TILE; ++k)
      for (int v = 0; v < V; ++v) store(to + k * work.map_size + v * LANES<A>, sums[k][v]);
  };
  for (int64_t y = 0; y < work.map_height; ++y)
    registers<A>(work.map_width, [&](int64_t x, auto count) {
      some(work.image + y * width + x, work.maps + y * work.map_width + x, count);
    });
}

// Adds what the gradients of `count` maps are to the images of C colours.
template <int C, class A>
void convolve_back(const Work<A>& work, const A* kernels, int64_t count) {
  const int64_t width = work.bordered_width, colour = work.height * work.gradient_width;
  auto some = [&](const A* from, A* to, auto registers) {
    constexpr int V = decltype(registers)::COUNT;
    Vec<A> sums[C][V];
    for (int i = 0; i < C; ++i)
      for (int v = 0; v < V; ++v) sums[i][v] = load(to + i * colour + v * LANES<A>);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t j = 0; j < 9; ++j) {
        const A *at = from + k * work.bordered_size + (2 - j / 3) * width + 2 - j % 3, *tap = kernels + k * 9 * C + j;
        Vec<A> pixels[V];
        for (int v = 0; v < V; ++v) pixels[v] = load(at + v * LANES<A>);
        for (int i = 0; i < C; ++i)
          for (int v = 0; v < V; ++v) sums[i][v] += tap[9 * i] * pixels[v];
      }
    for (int i = 0; i < C; ++i)
      for (int v = 0; v < V; ++v) store(to + i * colour + v * LANES<A>, sums[i][v]);
  };
  for (int64_t y = 0; y < work.height; ++y)
    registers<A>(work.width, [&](int64_t x, auto registers) {
      some(work.bordered + (y + work.inset) * width + work.inset + x, work.gradient + y * work.gradient_width + x,
           registers);
    });
}

template <class A>
Norm<A> norm_of(const ConvBlock& to, int64_t c) {
  return {static_cast<const A*>(to.weight)[c], static_cast<const A*>(to.bias)[c], true};
}

// Calls body(k, c) for the channels c of a tile whose map is in place.
template <class A, class Body>
void channels(const Work<A>& work, int64_t tile, const Body& body) {
  const ConvBlock& to = work.to;
  convolve(work, static_cast<const A*>(to.kernel) + tile * 9 * work.colours);
  for (int64_t c = tile; c < to.channels && c < tile + CONV_TILE; ++c) body(c - tile, c);
}

template <class T, class A = Accumulator<T>>
void forward(const Work<A>& work, int64_t n) {
  const ConvBlock& to = work.to;
  T *out = static_cast<T*>(to.out) + n * to.channels * work.averages, *line = reinterpret_cast<T*>(work.line);
  pad<T>(work, n);
  for (int64_t tile = 0; tile < to.channels; tile += CONV_TILE)
    channels(work, tile, [&](int64_t k, int64_t c) {
      A* map = work.maps + k * work.map_size;
      Norm<A> norm = norm_of<A>(to, c);
      measure(map, work.pixels, to.eps, norm);
      if (to.mean) {
        static_cast<A*>(to.mean)[n * to.channels + c] = norm.mean;
        static_cast<A*>(to.rstd)[n * to.channels + c] = norm.rstd;
      }
      columns<A>(work.pixels, [&](int64_t j, auto lanes) {
        store(map + j, rectified(norm(load(map + j, lanes)), norm.floor), lanes);
      });
      if (!to.images.channels_last) return pool(map, work.map_height, work.map_width, out + c * work.averages);
      pool(map, work.map_height, work.map_width, line);
      for (int64_t i = 0; i < work.averages; ++i) out[i * to.channels + c] = line[i];
    });
}

template <class T, class A = Accumulator<T>>
void backward(const Work<A>& work, int64_t n) {
  const ConvBlock& to = work.to;
  const T* grad = static_cast<const T*>(to.grad) + n * to.channels * work.averages;
  T* line = reinterpret_cast<T*>(work.line);
  const auto back = work.colours == 1   ? &convolve_back<1, A>
                    : work.colours == 2 ? &convolve_back<2, A>
                    : work.colours == 3 ? &convolve_back<3, A>
                                        : &convolve_back<4, A>;
  pad<T>(work, n);
  __builtin_memset(work.gradient, 0, work.gradient_size * sizeof(A));
  for (int64_t tile = 0; tile < to.channels; tile += CONV_TILE) {
    int64_t count = 0;
    channels(work, tile, [&](int64_t k, int64_t c) {
      A* map = work.maps + k * work.map_size;
      Norm<A> norm = norm_of<A>(to, c);
      norm.mean = static_cast<const A*>(to.mean)[n * to.channels + c];
      norm.rstd = static_cast<const A*>(to.rstd)[n * to.channels + c];
      const T* from = grad + c * work.averages;
      if (to.images.channels_last) {
        for (int64_t i = 0; i < work.averages; ++i) line[i] = grad[i * to.channels + c];
        from = line;
      }
      unpool(from, work.map_height, work.map_width, work.upstream, work.spread);
      A total[2];
      differentiate(map, static_cast<const A*>(nullptr), work.spread, work.pixels, norm, work.upstream, total,
                    [&](int64_t j, auto lanes, Vec<A> g) { store(map + j, g, lanes); });
      A* inner = work.bordered + k * work.bordered_size + work.border * (work.bordered_width + 1);
      for (int64_t y = 0; y < work.map_height; ++y)
        __builtin_memcpy(inner + y * work.bordered_width, map + y * work.map_width, work.map_width * sizeof(A));
      count = k + 1;
    });
    back(work, static_cast<const A*>(to.kernel) + tile * 9 * work.colours, count);
  }
  T* result = static_cast<T*>(to.images_grad) + n * work.colours * work.height * work.width;
  for (int64_t i = 0; i < work.colours; ++i)
    for (int64_t y = 0; y < work.height; ++y) {
      const A* row = work.gradient + (i * work.height + y) * work.gradient_width;
      T* target = to.images.channels_last ? line : result + (i * work.height + y) * work.width;
      columns<A>(work.width, [&](int64_t j, auto lanes) { store(target + j, load(row + j, lanes), lanes); });
      if (to.images.channels_last)
        for (int64_t x = 0; x < work.width; ++x) result[(y * work.width + x) * work.colours + i] = line[x];
    }
}

}  // namespace

int64_t conv_block_scratch(const ConvBlock& to) {
  if (to.images.element == Element::float64) return Work<double>{to}.size() * int64_t(sizeof(double));
  return Work<float>{to}.size() * int64_t(sizeof(float));
}

void conv_block_forward(const ConvBlock& to, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(to.images.element, T, {
    Work<Accumulator<T>> work{to};
    work.place(scratch);
    for (int64_t n = first; n < last; ++n) forward<T>(work, n);
  })
}

void conv_block_backward(const ConvBlock& to, void* scratch, int64_t first, int64_t last) {
  DDFAST_ELEMENT_SWITCH(to.images.element, T, {
    Work<Accumulator<T>> work{to};
    work.place(scratch);
    for (int64_t n = first; n < last; ++n) backward<T>(work, n);
  })
}

}  // namespace ddfast::DDFAST_ISA
