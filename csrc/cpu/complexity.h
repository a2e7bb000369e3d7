// SPDX-License-Identifier: Apache-2.0
// Class centralization and conditional mutual information: what complexity_op.cpp asks of the kernels.
#pragma once

#include "capability.h"
#include "element.h"

namespace ddfast {

// Rows of one class, few enough for their sums to be accurate in float; `first` and `last` count from the first row of
// the first class, in the order of the classes.
struct Chunk {
  int64_t k, first, last;
};

struct ComplexityOptions {
  double centralization, cmi;  // weights; that of CMI with its share of the batch
  double alpha, beta;
  bool exponential;
};

// The features and how they are cut; `index` as in `Segments`, null where rows are sorted.
struct ComplexityRows {
  const void* features;  // (N, E)
  Element element;
  int64_t row_stride, column_stride, width;
  const int64_t* index;
  const Chunk* chunks;
};

// Pointers are to the accumulator of the features' type: float, or double for double. Null where a weight is zero.
struct ComplexityForward {
  ComplexityRows rows;
  ComplexityOptions options;
  const int64_t* first_chunk;      // (K + 1,) the chunks of each class
  bool needs_drift;
  bool keeps;                      // exp(z − maximum) stays in scratch from the sums of a class to its distances
  void* centers = nullptr;         // (K, E)
  void* drift = nullptr;           // (K, E)
  void* log_q = nullptr;           // (K, E)
  void* centre_parts = nullptr;    // (chunks, E)
  void* q_parts = nullptr;         // (chunks, E)
  void* maxima = nullptr;          // (N,)
  void* totals = nullptr;          // (N,) sum exp(z − maximum)
  double* spread_parts = nullptr;  // (chunks,)
  double* kl_parts = nullptr;      // (chunks,)
};

struct ComplexityBackward {
  ComplexityRows rows;
  ComplexityOptions options;
  const void* grad;  // (K,)
  int64_t grad_stride;
  const void *centers, *drift, *log_q;  // (K, E)
  void* gradient;  // (N, E)
  int64_t gradient_row_stride, gradient_column_stride;
};

// Scratch is for one thread: three rows of the accumulator, and with `keeps` two and those of the largest class.
DDFAST_EVERYWHERE(
    // Sums of the rows and of their softmax over each chunk.
    void complexity_sums(const ComplexityForward& to, void* scratch, int64_t first_chunk, int64_t last_chunk);
    // The means of each class.
    void complexity_means(const ComplexityForward& to, int64_t first_class, int64_t last_class);
    // Distances from the means over each chunk.
    void complexity_distances(const ComplexityForward& to, void* scratch, int64_t first_chunk, int64_t last_chunk);
    // The pull on the centre of each class.
    void complexity_pulls(const ComplexityForward& to, int64_t first_class, int64_t last_class);
    void complexity_gradients(const ComplexityBackward& to, void* scratch, int64_t first_chunk, int64_t last_chunk);)

}  // namespace ddfast
