// Equation 13, Z ≈ Ã⁺, and its gradient, both as in pseudoinverse.py.
//
// Transposed throughout, z = Zᵀ, p = (Ã Z)ᵀ, o = outerᵀ: so no product of the backward pass has its right
// factor transposed.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace nystrom {

struct Norms {
  float column, row;  // ‖Ã‖₁ and ‖Ã‖_∞
};

inline Norms norms_of(const float* kernel_MM, int64_t m, float* column_sums, float* row_sums) {
  std::fill_n(column_sums, m, 0.0f);
  for (int64_t i = 0; i < m; ++i) {
    vec total = {};
    for (int64_t j = 0; j < m; j += LANES) {
      const vec x = load(kernel_MM + i * m + j);
      total += x;
      store(column_sums + j, load(column_sums + j) + x);
    }
    row_sums[i] = sum_of(total);
  }
  return {*std::max_element(column_sums, column_sums + m), *std::max_element(row_sums, row_sums + m)};
}

// `steps` has room for one step's z, p and o if `keep` is false, else for every step's.
inline void iterate(const float* kernel_MM, const float* kernel_T, int64_t m, int64_t iterations, Norms norms,
             bool keep, float* steps, float* inner, float* inverse_T) {
  const int64_t size = m * m;
  const float scale = 1 / (norms.column * norms.row);
  float* z = steps;
  for (int64_t i = 0; i < size; i += LANES) store(z + i, scale * load(kernel_MM + i));  // Z₀ᵀ
  for (int64_t step = 0; step < iterations; ++step) {
    float *p = z + size, *o = p + size;
    float* next = step + 1 == iterations ? inverse_T : keep ? o + size : inner;
    multiply(m, m, m, z, m, 1, kernel_T, m, p, m);
    multiply(m, m, m, p, m, 1, p, m, inner, m, -1, 7, p);
    multiply(m, m, m, p, m, 1, inner, m, o, m, -1, 15, p);
    multiply(m, m, m, o, m, 1, z, m, next, m, -0.25f, 3.25f, z);
    if (step + 1 < iterations) {
      if (keep) z = next;
      else std::memcpy(z, next, 4 * size);
    }
  }
}

// Gradient of the inverse with respect to Ã: reads `iterate`'s steps from the last; overwrites grad.
inline void iterate_backward(float* grad, const float* kernel_MM, const float* kernel_T, int64_t m,
                      int64_t iterations, Norms norms, const float* column_sums, const float* row_sums,
                      const float* steps, float* work, float* grad_kernel) {
  const int64_t size = m * m;
  float *g = work, *left = g + size, *both = left + size, *next = both + size;
  std::memset(grad_kernel, 0, 4 * size);
  for (int64_t step = iterations - 1; step >= 0; --step) {
    const float *z = steps + 3 * step * size, *p = z + size, *o = p + size;
    multiply(m, m, m, z, m, 1, grad, m, g, m, -0.25f);
    multiply(m, m, m, grad, m, 1, o, m, next, m, -0.25f, 3.25f, grad);
    multiply(m, m, m, p, m, 1, g, m, left, m);
    multiply(m, m, m, g, m, 1, p, m, both, m, 1, 1, left);
    for (int64_t i = 0; i < size; i += LANES) store(g + i, 15 * load(g + i) - 7 * load(both + i));
    multiply(m, m, m, both, m, 1, p, m, g, m, 1, 1);
    multiply(m, m, m, p, m, 1, left, m, g, m, 1, 1);
    multiply(m, m, m, g, m, 1, z, m, grad_kernel, m, 1, 1);
    multiply(m, m, m, kernel_T, m, 1, g, m, grad, m, 1, 1, next);
  }
  // Z₀ = Ãᵀ / (‖Ã‖₁ ‖Ã‖_∞); equal largest sums share the gradient, as in PyTorch.
  const float scale = 1 / (norms.column * norms.row);
  float* grad_T = next;
  transpose(grad, m, m, grad_T);
  vec total = {};
  for (int64_t i = 0; i < size; i += LANES) total += load(grad_T + i) * load(kernel_MM + i);
  const float grad_scale = -sum_of(total) * scale;
  const float at_column = grad_scale / norms.column / std::count(column_sums, column_sums + m, norms.column);
  const float at_row = grad_scale / norms.row / std::count(row_sums, row_sums + m, norms.row);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j)
      grad_kernel[i * m + j] += grad_T[i * m + j] * scale + (column_sums[j] == norms.column ? at_column : 0) +
                                (row_sums[i] == norms.row ? at_row : 0);
}

}  // namespace nystrom
