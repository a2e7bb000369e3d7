// SPDX-License-Identifier: Apache-2.0
// For the rows z_i of a class, with P_i = softmax(z_i), c = mean z, Q = mean P:
//   spread = sum_i |z_i − c|²  or  sum_i max(0, exp(alpha·|z_i − c|²) − beta)
//   KL     = sum_i sum_j P_ij·(log P_ij − log Q_j), with 0·log 0 = 0
//   dspread/dz_i = 2(w_i·(z_i − c) − mean_j w_j·(z_j − c)), w = 1 or d max(0, exp(alpha·s) − beta) / ds
//   dKL/dz_i     = P_i ⊙ (log P_i − log Q − KL_i)
#include "complexity.h"

#include "vector.h"

namespace ddfast::DDFAST_ISA {
namespace {

// Rows as the accumulator's type, read where they lie if they are so already.
template <class T>
class Reader {
  using A = Accumulator<T>;

 public:
  explicit Reader(const ComplexityRows& rows) : rows_(rows) {}

  int64_t position(int64_t i) const { return rows_.index ? rows_.index[i] : i; }

  const A* read(int64_t i, A* scratch) const {
    const T* from = static_cast<const T*>(rows_.features) + position(i) * rows_.row_stride;
    if constexpr (__is_same(T, A)) {
      if (rows_.column_stride == 1) return from;
    }
    columns<A>(rows_.width, [&](int64_t j, auto lanes) {
      if (rows_.column_stride == 1) return store(scratch + j, load(from + j, lanes), lanes);
      T gathered[LANES<A>];
      for (int64_t l = 0; l < count(lanes); ++l) gathered[l] = from[(j + l) * rows_.column_stride];
      store(scratch + j, load(gathered, lanes), lanes);
    });
    return scratch;
  }

 private:
  static int64_t count(All) { return LANES<A>; }
  static int64_t count(Some some) { return some.count; }

  const ComplexityRows& rows_;
};

// A NaN may be passed over.
template <class V>
V larger(V a, V b) {
  return a > b ? a : b;
}

// exp(z − maximum) into `to`; returns its sum. A NaN, which a maximum passes over, is in the sum and so in all of P.
template <class A>
A exponentials(const A* z, A maximum, int64_t width, A* to) {
  Vec<A> total{};
  columns<A>(width, [&](int64_t j, auto lanes) {
    const Vec<A> e = rest(exp_of_nonpositive(load(z + j, lanes) - maximum), lanes, 0);
    store(to + j, e, lanes);
    total += e;
  });
  return sum<A>(total);
}

template <class A>
double squared_distance(const A* z, const A* center, int64_t width) {
  Vec<A> total{};
  columns<A>(width, [&](int64_t j, auto lanes) {
    const Vec<A> offset = load(z + j, lanes) - load(center + j, lanes);
    total += offset * offset;
  });
  return sum<A>(total);
}

// d max(0, exp(alpha·s) − beta) / ds
double pull(const ComplexityOptions& options, double squared) {
  const double grown = __builtin_exp(options.alpha * squared);
  return grown < options.beta ? 0 : options.alpha * grown;
}

template <class A>
void clear(A* to, int64_t width) {
  __builtin_memset(to, 0, width * sizeof(A));
}

template <class T, class A = Accumulator<T>>
void sums(const ComplexityForward& to, A* scratch, const Chunk& chunk, int64_t number) {
  const int64_t width = to.rows.width;
  const Reader<T> rows(to.rows);
  A *row = scratch, *pilot = scratch + width, *e = scratch + 2 * width;
  const int64_t first = to.rows.chunks[to.first_chunk[chunk.k]].first;
  A* q = static_cast<A*>(to.q_parts) + number * width;
  A* centre = static_cast<A*>(to.centre_parts) + number * width;
  const bool centralize = to.options.centralization != 0;
  if (to.options.cmi != 0) clear(q, width);
  if (centralize) {
    clear(centre, width);
    // The class's first row, near which the others are: their sum keeps its digits however far away zero is.
    __builtin_memcpy(pilot, rows.read(first, row), width * sizeof(A));
  }
  for (int64_t i = chunk.first; i < chunk.last; ++i) {
    const A* z = rows.read(i, row);
    Vec<A> best = broadcast(A(-__builtin_inf()));
    columns<A>(width, [&](int64_t j, auto lanes) {
      const Vec<A> v = load(z + j, lanes);
      best = larger(best, rest(v, lanes, -__builtin_inff()));
      if (centralize) store(centre + j, load(centre + j, lanes) + (v - load(pilot + j, lanes)), lanes);
    });
    if (to.options.cmi == 0) continue;
    if (to.keeps) e = scratch + (2 + i - first) * width;
    const A maximum = largest<A>(best), total = exponentials(z, maximum, width, e), share = 1 / total;
    static_cast<A*>(to.maxima)[i] = maximum;
    static_cast<A*>(to.totals)[i] = total;
    columns<A>(width, [&](int64_t j, auto lanes) {
      store(q + j, load(q + j, lanes) + load(e + j, lanes) * share, lanes);
    });
  }
}

// The rows of class k, which has some.
int64_t rows_of(const ComplexityForward& to, int64_t k) {
  return to.rows.chunks[to.first_chunk[k + 1] - 1].last - to.rows.chunks[to.first_chunk[k]].first;
}

// sum over the chunks of a class / its rows. Compensated (Kahan): of a class of millions there are thousands of chunks.
template <class A, class Body>
void mean(const ComplexityForward& to, int64_t k, const void* parts, const Body& body) {
  const int64_t begin = to.first_chunk[k], end = to.first_chunk[k + 1], width = to.rows.width;
  const A rows = end > begin ? A(rows_of(to, k)) : A(1);
  columns<A>(width, [&](int64_t j, auto lanes) {
    Vec<A> total{}, excess{};
    for (int64_t c = begin; c < end; ++c) {
      const Vec<A> part = load(static_cast<const A*>(parts) + c * width + j, lanes) - excess, grown = total + part;
      excess = (grown - total) - part;
      total = grown;
    }
    body(j, lanes, total / rows);
  });
}

template <class T, class A = Accumulator<T>>
void means(const ComplexityForward& to, int64_t k) {
  const int64_t width = to.rows.width;
  if (to.options.centralization != 0) {
    A* center = static_cast<A*>(to.centers) + k * width;
    if (to.first_chunk[k] == to.first_chunk[k + 1]) clear(center, width);
    else {
      const A* pilot = Reader<T>(to.rows).read(to.rows.chunks[to.first_chunk[k]].first, center);
      mean<A>(to, k, to.centre_parts, [&](int64_t j, auto lanes, Vec<A> m) {
        store(center + j, load(pilot + j, lanes) + m, lanes);
      });
    }
  }
  if (to.options.cmi != 0) {
    A* log_q = static_cast<A*>(to.log_q) + k * width;
    if (to.first_chunk[k] == to.first_chunk[k + 1]) clear(log_q, width);
    else mean<A>(to, k, to.q_parts, [&](int64_t j, auto lanes, Vec<A> q) {
      // Where Q underflows so does P, and any finite logarithm will do. Q takes the place of its first part.
      store(static_cast<A*>(to.q_parts) + to.first_chunk[k] * width + j, q, lanes);
      store(log_q + j, q == 0 ? Vec<A>{} : log_of_positive(rest(q, lanes, 1)), lanes);
    });
  }
}

// sum_j Q_j·(log_q_j − log Q_j), by which a row's divergence is too small on average: with doubles,
// log Q − log_q = log(1 + u) = u, where u = Q·exp(−log_q) − 1 is some 1e-7 and u² below what counts.
double rounding_of(const float* q, const float* log_q, int64_t width) {
  Vec<double> total{};
  columns<double>(width, [&](int64_t j, auto lanes) {
    const Vec<double> given = widened(q + j, lanes);
    total -= given * (given * exp_of_moderate(-widened(log_q + j, lanes)) - 1.0);
  });
  return sum<double>(total);
}

double rounding_of(const double*, const double*, int64_t) { return 0; }

template <class T, class A = Accumulator<T>>
void distances(const ComplexityForward& to, A* scratch, const Chunk& chunk, int64_t number) {
  const int64_t width = to.rows.width;
  const Reader<T> rows(to.rows);
  const bool centralize = to.options.centralization != 0, informs = to.options.cmi != 0;
  const bool drifts = to.needs_drift && centralize, weighs = to.options.exponential;
  const A* center = static_cast<const A*>(to.centers) + chunk.k * width;
  const A* log_q = static_cast<const A*>(to.log_q) + chunk.k * width;
  const A* q = static_cast<const A*>(to.q_parts) + to.first_chunk[chunk.k] * width;
  A* drift = static_cast<A*>(to.centre_parts) + number * width;  // the sums that were here are used up
  if (drifts) clear(drift, width);
  const int64_t first = to.rows.chunks[to.first_chunk[chunk.k]].first;
  // Rows near Q share the rounding of its logarithm, which their class takes off once for all of them.
  const bool leads = informs && number == to.first_chunk[chunk.k];
  double spread = 0, kl = leads ? rows_of(to, chunk.k) * rounding_of(q, log_q, width) : 0;
  for (int64_t i = chunk.first; i < chunk.last; ++i) {
    const A* z = rows.read(i, scratch);
    const A* e = scratch + (2 + i - first) * width;
    const A maximum = informs ? static_cast<A*>(to.maxima)[i] : 0, total = informs ? static_cast<A*>(to.totals)[i] : 1;
    // P = exp(z − maximum)·share. A rounded share or logarithm moves log P of a whole row, and with it sum P·(log P − log Q)
    // by as much, which near convergence is more than its value. P·(log P − log Q) − P + Q has the same sum, and does not
    // move as long as the logarithm is that of the share.
    const A share = 1 / total;
    const double exact = -__builtin_log(double(share));
    const A log_total = A(exact);
    Vec<A> squares{}, divergence{};
    auto pulled = [&](int64_t j, auto lanes, Vec<A> offset) {
      store(drift + j, load(drift + j, lanes) + offset, lanes);
    };
    columns<A>(width, [&](int64_t j, auto lanes) {
      const Vec<A> v = load(z + j, lanes);
      if (centralize) {
        const Vec<A> offset = v - load(center + j, lanes);
        squares += offset * offset;
        if (drifts && !weighs) pulled(j, lanes, offset);
      }
      if (informs) {
        const Vec<A> kept = to.keeps ? load(e + j, lanes) : rest(exp_of_nonpositive(v - maximum), lanes, 0);
        const Vec<A> p = kept * share;
        const Vec<A> log_ratio = (v - maximum) - log_total - load(log_q + j, lanes);
        divergence += (p == 0 ? Vec<A>{} : p * log_ratio) + (load(q + j, lanes) - p);
      }
    });
    if (informs) kl += sum<A>(divergence) - (exact - log_total);
    const double squared = sum<A>(squares);
    if (!centralize || !weighs) {
      spread += squared;
      continue;
    }
    const double above = __builtin_exp(to.options.alpha * squared) - to.options.beta;
    spread += above < 0 ? 0 : above;
    const A weight = A(pull(to.options, squared));
    if (drifts)
      columns<A>(width, [&](int64_t j, auto lanes) {
        pulled(j, lanes, weight * (load(z + j, lanes) - load(center + j, lanes)));
      });
  }
  to.spread_parts[number] = spread;
  to.kl_parts[number] = kl;
}

template <class T, class A = Accumulator<T>>
void gradients(const ComplexityBackward& to, A* scratch, const Chunk& chunk) {
  const int64_t width = to.rows.width;
  const Reader<T> rows(to.rows);
  const A* center = static_cast<const A*>(to.centers) + chunk.k * width;
  const A* drift = static_cast<const A*>(to.drift) + chunk.k * width;
  const A* log_q = static_cast<const A*>(to.log_q) + chunk.k * width;
  const A grad = static_cast<const A*>(to.grad)[chunk.k * to.grad_stride];
  const A centralization = A(2 * to.options.centralization), cmi = A(to.options.cmi);
  A *row = scratch, *e = scratch + width, *whole = scratch + 2 * width;
  for (int64_t i = chunk.first; i < chunk.last; ++i) {
    const A* z = rows.read(i, row);
    A weight = 1, maximum = 0, log_sum = 0, share = 0, kl = 0;
    if (centralization != 0 && to.options.exponential)
      weight = A(pull(to.options, squared_distance(z, center, width)));
    auto log_ratio = [&](int64_t j, auto lanes) {  // log P − log Q
      return (load(z + j, lanes) - maximum) - log_sum - load(log_q + j, lanes);
    };
    if (cmi != 0) {
      Vec<A> best = broadcast(A(-__builtin_inf()));
      columns<A>(width, [&](int64_t j, auto lanes) {
        best = larger(best, rest(load(z + j, lanes), lanes, -__builtin_inff()));
      });
      maximum = largest<A>(best);
      const A total = exponentials(z, maximum, width, e);
      log_sum = A(__builtin_log(double(total)));
      share = 1 / total;
      Vec<A> terms{};
      columns<A>(width, [&](int64_t j, auto lanes) {
        const Vec<A> p = load(e + j, lanes) * share;
        terms += p == 0 ? Vec<A>{} : p * log_ratio(j, lanes);
      });
      kl = sum<A>(terms);
    }
    T* out = static_cast<T*>(to.gradient) + rows.position(i) * to.gradient_row_stride;
    auto fill = [&](auto* line) {
      columns<A>(width, [&](int64_t j, auto lanes) {
        Vec<A> g{};
        if (centralization != 0)
          g = centralization * (weight * (load(z + j, lanes) - load(center + j, lanes)) - load(drift + j, lanes));
        if (cmi != 0) {
          const Vec<A> p = load(e + j, lanes) * share;
          g += p == 0 ? Vec<A>{} : cmi * p * (log_ratio(j, lanes) - kl);
        }
        store(line + j, grad * g, lanes);
      });
    };
    if (to.gradient_column_stride == 1) {
      fill(out);
    } else {
      T* line = reinterpret_cast<T*>(whole);
      fill(line);
      for (int64_t j = 0; j < width; ++j) out[j * to.gradient_column_stride] = line[j];
    }
  }
}

}  // namespace

void complexity_sums(const ComplexityForward& to, void* scratch, int64_t first_chunk, int64_t last_chunk) {
  DDFAST_ELEMENT_SWITCH(to.rows.element, T, {
    for (int64_t c = first_chunk; c < last_chunk; ++c)
      sums<T>(to, static_cast<Accumulator<T>*>(scratch), to.rows.chunks[c], c);
  })
}

void complexity_means(const ComplexityForward& to, int64_t first_class, int64_t last_class) {
  DDFAST_ELEMENT_SWITCH(to.rows.element, T, {
    for (int64_t k = first_class; k < last_class; ++k) means<T>(to, k);
  })
}

void complexity_distances(const ComplexityForward& to, void* scratch, int64_t first_chunk, int64_t last_chunk) {
  DDFAST_ELEMENT_SWITCH(to.rows.element, T, {
    for (int64_t c = first_chunk; c < last_chunk; ++c)
      distances<T>(to, static_cast<Accumulator<T>*>(scratch), to.rows.chunks[c], c);
  })
}

void complexity_pulls(const ComplexityForward& to, int64_t first_class, int64_t last_class) {
  if (!to.needs_drift || to.options.centralization == 0) return;
  DDFAST_ELEMENT_SWITCH(to.rows.element, T, {
    using A = Accumulator<T>;
    for (int64_t k = first_class; k < last_class; ++k) {
      A* drift = static_cast<A*>(to.drift) + k * to.rows.width;
      mean<A>(to, k, to.centre_parts, [&](int64_t j, auto lanes, Vec<A> m) { store(drift + j, m, lanes); });
    }
  })
}

void complexity_gradients(const ComplexityBackward& to, void* scratch, int64_t first_chunk, int64_t last_chunk) {
  DDFAST_ELEMENT_SWITCH(to.rows.element, T, {
    for (int64_t c = first_chunk; c < last_chunk; ++c)
      gradients<T>(to, static_cast<Accumulator<T>*>(scratch), to.rows.chunks[c]);
  })
}

}  // namespace ddfast::DDFAST_ISA
