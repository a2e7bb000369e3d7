// SPDX-License-Identifier: Apache-2.0
// How the rows of all classes are divided among threads; the tensor side of moments and of matching.
#pragma once

#include <vector>

#include "moments.h"
#include "tensors.h"

namespace ddfast {

inline Maps maps_of(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must have shape (N, A, B, P)");
  return {const_cast<void*>(t.const_data_ptr()), element(name, t), t.size(1), t.size(2), t.size(3),
          t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct Side {
  Maps maps;
  const Segments* segments;
};

// The moments of every class over one side, or over two (0 synthetic, 1 real).
//
// Threads get equal shares of the rows, class after class. A class that one thread has is finished by it while its sums
// are in cache. Of a class that was cut each thread leaves its sums, and all threads finish it together; so neither one
// class nor more threads than classes leave a thread idle. What is added up in which order depends on the number of
// threads alone.
class Moments {
 public:
  // Of the classes for which `wanted(k)`.
  template <class Wanted>
  Moments(std::vector<Side> sides, int64_t classes, bool products, const Wanted& wanted) : sides_(std::move(sides)) {
    const Maps& maps = sides_[0].maps;
    const int64_t descriptors = maps.a * maps.b;
    sizes_ = DDFAST_DISPATCH(moment_sizes)(maps.element, descriptors, maps.positions, products);
    int64_t rows = 0;
    for (int64_t k = 0; k < classes; ++k) rows += wanted(k) ? count(k, 0) + count(k, 1) : 0;
    const int64_t work = rows * descriptors * maps.positions * (products ? 1 + descriptors / 16 : 1);
    threads_.resize(std::min<int64_t>(torch::stable::get_num_threads(), 1 + work / (1 << 16)));
    divide(classes, rows, wanted);
    int64_t bytes = 0;
    for (Thread& thread : threads_) {
      thread.scratch = take(bytes, sizes_.scratch);
      thread.left = take(bytes, products ? sides_.size() * sizes_.array : 0);
      thread.right = take(bytes, products ? sides_.size() * sizes_.array : 0);
      int64_t shared = -1;  // by all classes that are finished before the next one
      for (Part& part : thread.parts) {
        if (!part.whole || shared < 0) part.sums = take(bytes, sums_bytes());
        if (part.whole) part.sums = shared = shared < 0 ? part.sums : shared;
      }
    }
    memory_ = memory(bytes);
  }

  // finish_of(k) says what is wanted of class k; squares(k, mean, covariance) gets the squared norms of its gaps.
  template <class FinishOf, class Squares>
  void run(const FinishOf& finish_of, const Squares& squares) {
    const auto finish_mean = DDFAST_DISPATCH(finish_mean);
    const auto finish_covariance = DDFAST_DISPATCH(finish_covariance);
    torch::stable::parallel_for(0, int64_t(threads_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (size_t i = 0; i < threads_[t].parts.size(); ++i) {
          gather_part(threads_[t], i);
          const Part& part = threads_[t].parts[i];
          if (!part.whole) continue;
          const Sums sums = sums_of(part);
          const Finish finish = with_sums(finish_of(part.k), threads_[t], part.k, &sums, 1);
          const double mean = finish_mean(finish);
          squares(part.k, mean, sizes_.tiles ? finish_covariance(finish, 0, sizes_.panels) : 0);
        }
      }
    });
    for (const auto& [k, cut] : cut_) {
      std::vector<Sums> parts;
      for (const auto& [thread, i] : cut) parts.push_back(sums_of(threads_[thread].parts[i]));
      const Finish finish = with_sums(finish_of(k), threads_[0], k, parts.data(), parts.size());
      const double mean = finish_mean(finish);
      // Rows of tiles from both ends together are equally long.
      const int64_t pairs = sizes_.tiles ? (sizes_.panels + 1) / 2 : 0;
      std::vector<double> of_pair(pairs);
      torch::stable::parallel_for(0, pairs, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t last = sizes_.panels - 1 - i;
          of_pair[i] = finish_covariance(finish, i, i + 1) + (last > i ? finish_covariance(finish, last, last + 1) : 0);
        }
      });
      double covariance = 0;
      for (double square : of_pair) covariance += square;
      squares(k, mean, covariance);
    }
  }

 private:
  struct Part {  // the rows of a class that one thread has, of both sides
    int64_t k, begin[2], end[2];
    bool whole;
    int64_t sums;  // where in memory
  };
  struct Thread {
    std::vector<Part> parts;
    int64_t scratch, left, right;
  };
  struct Cut {
    int64_t k;
    std::vector<std::pair<int64_t, int64_t>> parts;  // (thread, part)
  };

  static int64_t take(int64_t& bytes, int64_t more) {
    const int64_t at = bytes;
    bytes += (more + 63) / 64 * 64;
    return at;
  }

  int64_t count(int64_t k, size_t side) const { return side < sides_.size() ? sides_[side].segments->count(k) : 0; }
  int64_t sums_bytes() const { return 2 * int64_t(sides_.size()) * sizes_.array + sizes_.tiles; }

  // Cuts the sequence of rows, of each class the real ones first, in equal shares; at a class's border where one is near.
  template <class Wanted>
  void divide(int64_t classes, int64_t rows, const Wanted& wanted) {
    const int64_t threads = int64_t(threads_.size()), slack = rows / threads / 16;
    int64_t base = 0, begin = 0, thread = 0;
    auto share_end = [&] { return rows * (thread + 1) / threads; };
    for (int64_t k = 0; k < classes; ++k) {
      if (!wanted(k)) continue;
      const int64_t real = count(k, 1), end = base + real + count(k, 0);
      Cut cut{k, {}};
      while (begin < end) {
        while (thread + 1 < threads && share_end() <= begin + (begin == base ? slack : 0)) ++thread;
        const int64_t stop = share_end() + slack >= end ? end : share_end();
        const int64_t from = begin - base, to = stop - base;
        cut.parts.push_back({thread, int64_t(threads_[thread].parts.size())});
        threads_[thread].parts.push_back({k, {std::max(from - real, int64_t(0)), std::min(from, real)},
                                          {std::max(to - real, int64_t(0)), std::min(to, real)},
                                          begin == base && stop == end, 0});
        begin = stop;
      }
      if (cut.parts.size() > 1) cut_.push_back(std::move(cut));
      base = end;
    }
  }

  char* at(int64_t offset) const { return static_cast<char*>(memory_->get()) + offset; }

  Sums sums_of(const Part& part) const {
    Sums sums{};
    int64_t next = part.sums;
    for (size_t side = 0; side < sides_.size(); ++side, next += 2 * sizes_.array) {
      if (part.begin[side] == part.end[side]) continue;
      sums.pivot[side] = at(next);
      sums.sum[side] = at(next + sizes_.array);
    }
    sums.tiles = sizes_.tiles ? at(next) : nullptr;
    return sums;
  }

  // Rows of a class, counted from its first.
  Rows rows_of(int64_t k, size_t side, int64_t begin, int64_t end) const {
    const Segments& segments = *sides_[side].segments;
    const int64_t first = segments.first(k);
    return {&sides_[side].maps, segments.index, first + begin, first + end};
  }

  void gather_part(const Thread& thread, size_t i) const {
    const auto gather = DDFAST_DISPATCH(gather);
    const Part& part = thread.parts[i];
    bool fresh = true;
    for (size_t side = sides_.size(); side-- > 0;) {
      if (part.begin[side] == part.end[side]) continue;
      Rows next{};
      if (side == 1 && part.begin[0] < part.end[0]) {
        next = rows_of(part.k, 0, part.begin[0], part.end[0]);
      } else if (i + 1 < thread.parts.size()) {
        const Part& after = thread.parts[i + 1];
        const size_t first = sides_.size() - 1;
        next = rows_of(after.k, first, after.begin[first], after.end[first]);
      }
      const int64_t whole = count(part.k, side);
      gather({rows_of(part.k, side, part.begin[side], part.end[side]), rows_of(part.k, side, 0, whole), next,
              sums_of(part), int(side), (side == 0 ? 1.0 : -1.0) / double(whole), fresh, at(thread.scratch)});
      fresh = false;
    }
  }

  Finish with_sums(Finish finish, const Thread& thread, int64_t k, const Sums* parts, size_t number) const {
    const Maps& maps = sides_[0].maps;
    finish.element = maps.element;
    finish.descriptors = maps.a * maps.b;
    finish.positions = maps.positions;
    finish.parts = parts;
    finish.number = int64_t(number);
    for (size_t side = 0; side < 2; ++side) finish.rows[side] = count(k, side);
    finish.left = sizes_.tiles ? at(thread.left) : nullptr;
    finish.right = sizes_.tiles ? at(thread.right) : nullptr;
    return finish;
  }

  std::vector<Side> sides_;
  Sizes sizes_;
  std::vector<Thread> threads_;
  std::vector<Cut> cut_;
  std::optional<Memory> memory_;
};

}  // namespace ddfast
