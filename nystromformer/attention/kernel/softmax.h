// Softmax of rows, and of columns whose rows arrive block by block.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace nystrom {

// One row's scores become exp(score − largest).
inline void exponentials(float* x, int64_t columns, float& largest, float& total) {
  vec top = load(x);
  for (int64_t j = LANES; j < columns; j += LANES) top = larger(load(x + j), top);
  largest = largest_of(top);
  vec sum = {};
  for (int64_t j = 0; j < columns; j += LANES) {
    const vec e = exponential(load(x + j) - splat(largest));
    sum += e;
    store(x + j, e);
  }
  total = sum_of(sum);
}

inline void softmax_of_rows(float* x, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, x += columns) {
    vec top = load(x);
    for (int64_t j = LANES; j < columns; j += LANES) top = larger(load(x + j), top);
    const vec largest = splat(largest_of(top));
    vec total = {};
    for (int64_t j = 0; j < columns; j += LANES) {
      const vec e = exponential(load(x + j) - largest);
      total += e;
      store(x + j, e);
    }
    const vec share = splat(1.0f / sum_of(total));
    for (int64_t j = 0; j < columns; j += LANES) store(x + j, share * load(x + j));
  }
}

// grad ← P ∘ (grad − Σ P ∘ grad), row by row: the gradient of the scores.
inline void softmax_of_rows_backward(float* grad, const float* p, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i, grad += columns, p += columns) {
    vec total = {};
    for (int64_t j = 0; j < columns; j += LANES) total += load(p + j) * load(grad + j);
    const vec mean = splat(sum_of(total));
    for (int64_t j = 0; j < columns; j += LANES) store(grad + j, load(p + j) * (load(grad + j) - mean));
  }
}

// The softmax of each column over rows that arrive block by block.
struct RunningSoftmax {
  float *largest_M, *total_M, *correction_M;
  int64_t m;

  void start() {
    std::fill_n(largest_M, m, -INFINITY);
    std::fill_n(total_M, m, 0.0f);
  }
  // Scores become exp(score − largest so far); earlier sums are to be multiplied by `correction`.
  void take(float* scores, int64_t rows) {
    for (int64_t j = 0; j < m; j += LANES) {
      vec top = load(largest_M + j);
      for (int64_t i = 0; i < rows; ++i) top = larger(load(scores + i * m + j), top);
      const vec correction = exponential(load(largest_M + j) - top);
      vec total = correction * load(total_M + j);
      for (int64_t i = 0; i < rows; ++i) {
        const vec e = exponential(load(scores + i * m + j) - top);
        total += e;
        store(scores + i * m + j, e);
      }
      store(largest_M + j, top), store(total_M + j, total), store(correction_M + j, correction);
    }
  }
};

inline void scale_rows(float* x_MD, int64_t m, int64_t d, const float* factor_M) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t c = 0; c < d; c += LANES) store(x_MD + i * d + c, factor_M[i] * load(x_MD + i * d + c));
}

}  // namespace nystrom
