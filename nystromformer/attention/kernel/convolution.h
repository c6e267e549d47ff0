// The residual convolution of one head, and its gradients. Shapes: K kernel width, D head width.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace nystrom {

// The kernel between zeros: `band` + TILE_ROWS − 1 read with strides (−1, 1) is a banded matrix.
inline void fill_band(float* band, const float* kernel_K, int64_t k, bool turned_round) {
  std::memset(band, 0, 4 * (k + 2 * TILE_ROWS));
  for (int64_t j = 0; j < k; ++j) band[TILE_ROWS - 1 + j] = kernel_K[turned_round ? k - 1 - j : j];
}

// out[t] = Σ_j kernel[j] · window[t + j], `count` positions, window of count + K − 1.
inline void convolve(const float* window, const float* band, int64_t k, int64_t count, int64_t d,
                     float* out) {
  for (int64_t t = 0; t < count; t += TILE_ROWS) {
    const int64_t rows = std::min<int64_t>(TILE_ROWS, count - t);
    multiply(rows, d, k + rows - 1, band + TILE_ROWS - 1, -1, 1, window + t * d, d, out + t * d, d);
  }
}

// sums[j] += Σ_t grad[t] · window[t + j], lane by lane.
template <int TAPS>
void correlate(const float* window, const float* grad, int64_t count, int64_t d, float* sums) {
  vec held[TAPS];
#pragma GCC unroll 8
  for (int j = 0; j < TAPS; ++j) held[j] = load(sums + j * LANES);
  for (int64_t t = 0; t < count; ++t)
    for (int64_t c = 0; c < d; c += LANES) {
      const vec g = load(grad + t * d + c);
#pragma GCC unroll 8
      for (int j = 0; j < TAPS; ++j) held[j] += g * load(window + (t + j) * d + c);
    }
#pragma GCC unroll 8
  for (int j = 0; j < TAPS; ++j) store(sums + j * LANES, held[j]);
}

inline void correlate_all(const float* window, const float* grad, int64_t k, int64_t count, int64_t d,
                          float* sums) {
  int64_t j = 0;
  for (; j + 8 <= k; j += 8) correlate<8>(window + j * d, grad, count, d, sums + j * LANES);
  for (; j < k; ++j) correlate<1>(window + j * d, grad, count, d, sums + j * LANES);
}

}  // namespace nystrom
