// SPDX-License-Identifier: Apache-2.0
// Sums over the rows of one class, from which its means and its local covariance follow; for either side of matching.
#pragma once

#include <cstdint>

#include "capability.h"
#include "element.h"

namespace ddfast {

// Maps (N, A, B, P): D = A·B descriptors at P positions; strides in elements.
struct Maps {
  void* data;
  Element element;
  int64_t a, b, positions;
  int64_t stride_n, stride_a, stride_b, stride_p;
};

// Some rows of the maps: index[i] for begin <= i < end, or i itself without an index.
struct Rows {
  const Maps* maps;
  const int64_t* index;
  int64_t begin, end;
};

// Bytes of what a kernel is given to work in. Arrays of one number per descriptor and position are padded to whole tiles
// and registers, (D', P').
struct Sizes {
  int64_t array;     // (D', P')
  int64_t tiles;     // the tiles on and above the diagonal of (D', D')
  int64_t scratch;   // of `gather`
  int64_t panels;    // of a tile's height
};

// About a pivot near the mean: S = sum (F_n − pivot), and the tiles of T = sum ±(F_n − pivot)(F_n − pivot)^T / N over
// synthetic (0, +) and real (1, −) rows together. A side without rows has null for its arrays.
struct Sums {
  void* pivot[2];
  void* sum[2];
  void* tiles;  // null where no product is wanted
};

// Adds rows of one side of a class.
struct Gather {
  Rows rows;
  Rows whole;  // the class, whose leading rows give the pivot
  Rows next;   // what is read after this; fetched meanwhile
  Sums sums;
  int side;
  double scale;  // ±1/N
  bool fresh;    // the tiles hold nothing yet
  void* scratch;
};

// From sums to moments. M = pivot + S/N and Sigma = T − ±(S/N)(S/N)^T summed over the sides, so that `covariance` is
// Sigma_s − Sigma_r, or Sigma alone. Outputs that are null are not wanted.
struct Finish {
  Element element;
  int64_t descriptors, positions;
  const Sums* parts;  // partial sums of the class, added up in this order; the first ones are overwritten
  int64_t number;
  int64_t rows[2];  // of the class; rows[1] is 0 where there is no real side
  Element other;    // of the real moments
  const void* other_mean;        // (D, P) to subtract
  const void* other_covariance;  // (D, D) to subtract, symmetric
  void* mean;                    // (D, P) of side 0, rounded,
  void* drift;                   // and what rounding took off it
  void* mean_gap;                // (D, P)
  void* covariance;              // (D, D)
  bool squares;                  // whether a mean gap is wanted at all
  void* left;                    // to work in: two arrays (D', 2P'), null where no covariance is wanted
  void* right;
};

DDFAST_EVERYWHERE(
    Sizes moment_sizes(Element element, int64_t descriptors, int64_t positions, bool products);
    void gather(const Gather& g);

    // The means, and ||mean gap||²; what `finish_covariance` needs in `left` and `right`.
    double finish_mean(const Finish& f);

    // The rows `begin` to `end` of tiles, and their part of ||covariance||².
    double finish_covariance(const Finish& f, int64_t begin, int64_t end);)

}  // namespace ddfast
