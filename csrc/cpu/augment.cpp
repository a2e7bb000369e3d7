// SPDX-License-Identifier: Apache-2.0
// Each image by its group's row of the table. All maps but SAMPLE go row by row, an image at a time; their transposes are
// maps of the same kind.
#include "augment.h"

#include "transpose.h"

namespace ddfast::DDFAST_ISA {
namespace {

int64_t clip(double value, int64_t size) { return value < 0 ? 0 : value > double(size) ? size : int64_t(value); }

template <class T>
struct Image {
  const Augment& task;
  const T* from;
  T* to;
  T* scratch;

  Image(const Augment& task_, int64_t number, void* scratch_)
      : task(task_),
        from(static_cast<const T*>(task_.images) + number / task_.per_group * task_.group_stride +
             number % task_.per_group * task_.image_stride),
        to(static_cast<T*>(task_.out) + number * task_.channels * task_.height * task_.width),
        scratch(static_cast<T*>(scratch_)) {}

  // Row i of channel c, where it lies if its elements are neighbours.
  const T* row(int64_t c, int64_t i) const {
    const T* there = from + c * task.channel_stride + i * task.row_stride;
    if (task.column_stride == 1) return there;
    T* here = scratch + c * task.width;
    for (int64_t j = 0; j < task.width; ++j) here[j] = there[j * task.column_stride];
    return here;
  }

  T* out(int64_t c, int64_t i) const { return to + (c * task.height + i) * task.width; }

  // Calls body(c, i) for every row.
  template <class Body>
  void rows(const Body& body) const {
    for (int64_t c = 0; c < task.channels; ++c)
      for (int64_t i = 0; i < task.height; ++i) body(c, i);
  }
};

template <class T>
void copy(T* to, const T* from, int64_t count) {
  __builtin_memcpy(to, from, count * sizeof(T));
}

template <class T>
void clear(T* to, int64_t count) {
  __builtin_memset(to, 0, count * sizeof(T));
}

// gain·x + a·(mean over C) + b·(mean over C, H, W) + offset: symmetric but for the offset.
template <class T>
void color(const Image<T>& image, const double* table) {
  const auto& [task, from, to, scratch] = image;
  double total = 0;  // of rows: a float would round the mean of a large image
  image.rows([&](int64_t c, int64_t i) {
    Vec<T> sums{};
    const T* row = image.row(c, i);
    columns<T>(task.width, [&](int64_t j, auto lanes) { sums += load(row + j, lanes); });
    total += sum<T>(sums);
  });
  const double mean = total / double(task.channels * task.height * task.width);
  const T gain = T(table[1]), pixel = T(table[2] / double(task.channels));
  const T shift = T(table[3] * mean + (task.transpose ? 0 : table[5]));
  for (int64_t i = 0; i < task.height; ++i) {
    const T* first = image.row(0, i);
    for (int64_t c = 1; c < task.channels; ++c) image.row(c, i);
    const int64_t stride = first == scratch ? task.width : task.channel_stride;
    columns<T>(task.width, [&](int64_t j, auto lanes) {
      Vec<T> sums{};
      for (int64_t c = 0; c < task.channels; ++c) sums += load(first + c * stride + j, lanes);
      const Vec<T> added = pixel * sums + shift;
      for (int64_t c = 0; c < task.channels; ++c)
        store(image.out(c, i) + j, gain * load(first + c * stride + j, lanes) + added, lanes);
    });
  }
}

template <class T>
void shift(const Image<T>& image, const double* table) {
  const auto& task = image.task;
  const int64_t sign = task.transpose ? -1 : 1, down = sign * int64_t(table[1]), right = sign * int64_t(table[2]);
  const int64_t begin = clip(double(-right), task.width), end = clip(double(task.width - right), task.width);
  image.rows([&](int64_t c, int64_t i) {
    T* out = image.out(c, i);
    if (i + down < 0 || i + down >= task.height || begin >= end) return clear(out, task.width);
    clear(out, begin);
    copy(out + begin, image.row(c, i + down) + begin + right, end - begin);
    clear(out + end, task.width - end);
  });
}

template <class T>
void cut(const Image<T>& image, const double* table) {
  const auto& task = image.task;
  const int64_t top = clip(table[1], task.height), bottom = clip(table[2], task.height);
  const int64_t left = clip(table[3], task.width), right = clip(table[4], task.width);
  image.rows([&](int64_t c, int64_t i) {
    copy(image.out(c, i), image.row(c, i), task.width);
    if (top <= i && i < bottom && left < right) clear(image.out(c, i) + left, right - left);
  });
}

template <class T>
void mirror(const Image<T>& image) {
  const int64_t width = image.task.width;
  image.rows([&](int64_t c, int64_t i) {
    const T* __restrict row = image.row(c, i);
    T* __restrict out = image.out(c, i);
    for (int64_t j = 0; j < width; ++j) out[j] = row[width - 1 - j];
  });
}

// As many channels of a group's images as a register has lanes, a channel in each: what a pixel of the result takes from
// its four neighbours is then four products of registers, and its transpose four sums, in which no lane meets another.
// The images have a margin, where samples outside them read zeros and their transpose leaves what is not wanted.
template <class T>
class Planes {
  static constexpr int64_t MARGIN = Augment::MARGIN;

 public:
  Planes(const Augment& task, const double* table, void* scratch)
      : task_(task), table_(table), padded_(static_cast<T*>(scratch)), stride_((task.width + 2 * MARGIN) * LANES<T>) {}

  // Planes `first` to `last`, at most LANES, of all G·n·C.
  void run(int64_t first, int64_t last) {
    count_ = last - first;
    for (int64_t l = 0; l < count_; ++l) {
      const Image<T> image(task_, (first + l) / task_.channels, nullptr);
      from_[l] = image.from + (first + l) % task_.channels * task_.channel_stride;
      to_[l] = static_cast<T*>(task_.out) + (first + l) * task_.height * task_.width;
    }
    if (task_.transpose || !cleared_) clear(padded_, (task_.height + 2 * MARGIN) * stride_);
    cleared_ = true;
    Vec<T> v[LANES<T>];
    if (task_.transpose) {
      blocks([&](int64_t i, int64_t j, int64_t width) {
        read(i, j, width, v);
        taps(i, j, width, [&](int64_t p, T* at, T left, T right, T upper, T lower) {
          add(at, left * upper, v[p]);
          add(at + LANES<T>, right * upper, v[p]);
          add(at + stride_, left * lower, v[p]);
          add(at + stride_ + LANES<T>, right * lower, v[p]);
        });
      });
      blocks([&](int64_t i, int64_t j, int64_t width) {
        for (int64_t p = 0; p < width; ++p) v[p] = load(pixel(i, j + p));
        write(i, j, width, v);
      });
    } else {
      blocks([&](int64_t i, int64_t j, int64_t width) {
        read(i, j, width, v);
        for (int64_t p = 0; p < width; ++p) store(pixel(i, j + p), v[p]);
      });
      blocks([&](int64_t i, int64_t j, int64_t width) {
        taps(i, j, width, [&](int64_t p, T* at, T left, T right, T upper, T lower) {
          v[p] = upper * (left * load(at) + right * load(at + LANES<T>)) +
                 lower * (left * load(at + stride_) + right * load(at + stride_ + LANES<T>));
        });
        write(i, j, width, v);
      });
    }
  }

 private:
  // Calls body(i, j, width) for every `width` <= LANES neighbours (i, j), (i, j + 1), ...
  template <class Body>
  void blocks(const Body& body) const {
    for (int64_t i = 0; i < task_.height; ++i)
      for (int64_t j = 0; j < task_.width; j += LANES<T>)
        body(i, j, task_.width - j < LANES<T> ? task_.width - j : LANES<T>);
  }

  T* pixel(int64_t i, int64_t j) const { return padded_ + (i + MARGIN) * stride_ + (j + MARGIN) * LANES<T>; }

  static void add(T* at, T weight, Vec<T> v) { store(at, load(at) + weight * v); }

  // v[p] = pixel (i, j + p) of all planes
  void read(int64_t i, int64_t j, int64_t width, Vec<T>* v) const {
    for (int64_t l = 0; l < LANES<T>; ++l) {
      v[l] = Vec<T>{};
      if (l >= count_) continue;
      const T* at = from_[l] + i * task_.row_stride + j * task_.column_stride;
      if (width == LANES<T> && task_.column_stride == 1) v[l] = load(at);
      else for (int64_t p = 0; p < width; ++p) v[l][p] = at[p * task_.column_stride];
    }
    transpose<T>(v);
  }

  // pixel (i, j + p) of all planes = v[p]
  void write(int64_t i, int64_t j, int64_t width, Vec<T>* v) const {
    transpose<T>(v);
    for (int64_t l = 0; l < count_; ++l) {
      T* at = to_[l] + i * task_.width + j;
      if (width == LANES<T>) store(at, v[l]);
      else store(at, v[l], Some{width});
    }
  }

  // Calls body(p, at, left, right, upper, lower) for every pixel (i, j + p): `at` is the upper left of the four that it
  // is between, the others its weights.
  template <class Body>
  void taps(int64_t i, int64_t j, int64_t width, const Body& body) const {
    const double middle = 0.5 * double(task_.width - 1), centre = 0.5 * double(task_.height - 1);
    const double y = double(i) - centre;
    int32_t columns[LANES<T>], rows[LANES<T>];
    T right[LANES<T>], lower[LANES<T>];
    for (int64_t p = 0; p < LANES<T>; ++p) {
      const double x = double(j + p) - middle;
      split(table_[1] * x + table_[2] * y + (middle + MARGIN), double(task_.width + MARGIN), columns[p], right[p]);
      split(table_[3] * x + table_[4] * y + (centre + MARGIN), double(task_.height + MARGIN), rows[p], lower[p]);
    }
    for (int64_t p = 0; p < width; ++p) {
      T* at = padded_ + rows[p] * stride_ + columns[p] * LANES<T>;
      body(p, at, 1 - right[p], right[p], 1 - lower[p], lower[p]);
    }
  }

  // A position from the margin's edge on, as a whole number and a rest; all outside become the margin's outermost.
  static void split(double position, double last, int32_t& whole, T& rest) {
    const double inside = position > 0 ? (position < last ? position : last) : 0;
    whole = int32_t(inside);
    rest = T(inside - whole);
  }

  const Augment& task_;
  const double* table_;
  T* padded_;       // (H + 2·MARGIN, W + 2·MARGIN, LANES)
  int64_t stride_;  // of its rows
  int64_t count_ = 0;
  bool cleared_ = false;
  const T* from_[LANES<T>];
  T* to_[LANES<T>];
};

template <class T>
void run(const Augment& task, void* scratch, int64_t first, int64_t last) {
  for (int64_t i = first; i < last;) {
    const int64_t group = i / task.per_group;
    const double* table = task.table + group * TABLE;
    int64_t end = i + 1;
    switch (int(table[0])) {
      case COLOR: color(Image<T>(task, i, scratch), table); break;
      case SHIFT: shift(Image<T>(task, i, scratch), table); break;
      case CUT: cut(Image<T>(task, i, scratch), table); break;
      case MIRROR: mirror(Image<T>(task, i, scratch)); break;
      case SAMPLE: {
        end = (group + 1) * task.per_group < last ? (group + 1) * task.per_group : last;
        Planes<T> planes(task, table, scratch);
        for (int64_t c = i * task.channels; c < end * task.channels; c += LANES<T>)
          planes.run(c, c + LANES<T> < end * task.channels ? c + LANES<T> : end * task.channels);
      }
    }
    i = end;
  }
}

}  // namespace

void augment_images(const Augment& task, void* scratch, int64_t first, int64_t last) {
  (task.float64 ? run<double> : run<float>)(task, scratch, first, last);
}

}  // namespace ddfast::DDFAST_ISA
