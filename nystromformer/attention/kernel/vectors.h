// Vectors as wide as the CPU has them, their exponential, and matrix products out of them.
//
// A matrix is row-major; m and d below are multiples of 16, so no vector is ever cut.

#pragma once

#include <cstdint>
#include <cstring>

namespace nystrom {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_VECTORS = 4;  // 6 × 4 sums, 4 columns and a scalar in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_VECTORS = 2;
#else
constexpr int LANES = 4, TILE_VECTORS = 4;
#endif
constexpr int TILE_ROWS = 6;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

inline vec load(const float* from) {
  vec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, vec x) { std::memcpy(to, &x, sizeof x); }
inline vec splat(float x) { return x - vec{}; }
inline vec larger(vec x, vec y) { return x < y ? y : x; }  // a NaN in x stays

template <int WIDTH>
inline vec swapped(vec x) {
  ivec order;
  for (int i = 0; i < LANES; ++i) order[i] = i ^ WIDTH;
  return __builtin_shuffle(x, order);
}
template <int WIDTH = LANES / 2>
inline float sum_of(vec x) {
  if constexpr (WIDTH == 0) return x[0];
  else return sum_of<WIDTH / 2>(x + swapped<WIDTH>(x));
}
template <int WIDTH = LANES / 2>
inline float largest_of(vec x) {
  if constexpr (WIDTH == 0) return x[0];
  else return largest_of<WIDTH / 2>(larger(x, swapped<WIDTH>(x)));
}

// eˣ for x ≤ 0 to 2 units in the last place; below −87 it is e⁻⁸⁷, which no sum notices.
inline vec exponential(vec x) {
  const vec magic = splat(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer in the low bits
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  const vec shifted = x * splat(1.44269504f) + magic;
  const vec whole = shifted - magic;
  const vec r = (x - whole * splat(0.693359375f)) - whole * splat(-2.12194440e-4f);
  vec p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  ivec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - (0x4B400000 - 127)) << 23;
  vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Natural logarithm of positive normal numbers to 2 units in the last place (Cephes' logf).
inline vec logarithm(vec x) {
  ivec bits;
  std::memcpy(&bits, &x, sizeof bits);
  const ivec shifted = bits - 0x3f3504f3;  // √½, so that what is left lies between √½ and √2
  const ivec whole = shifted >> 23;
  bits = (shifted & 0x7fffff) + 0x3f3504f3;
  vec r;
  std::memcpy(&r, &bits, sizeof r);
  const vec exponent = __builtin_convertvector(whole, vec);
  r = r - splat(1.0f);
  vec p = splat(7.0376836292e-2f);
  p = p * r - splat(1.1514610310e-1f);
  p = p * r + splat(1.1676998740e-1f);
  p = p * r - splat(1.2420140846e-1f);
  p = p * r + splat(1.4249322787e-1f);
  p = p * r - splat(1.6668057665e-1f);
  p = p * r + splat(2.0000714765e-1f);
  p = p * r - splat(2.4999993993e-1f);
  p = p * r + splat(3.3333331174e-1f);
  const vec square = r * r;
  p = p * r * square + exponent * splat(-2.12194440e-4f) - splat(0.5f) * square;
  return r + p + exponent * splat(0.693359375f);
}

// The first `count` lanes alone
inline void put_some(float* to, vec x, int64_t count) {
  for (int i = 0; i < LANES && i < count; ++i) to[i] = x[i];
}

// --- matrix products ------------------------------------------------------------------------------

// C = alpha · A B + beta · C₀ for ROWS × (VECTORS · LANES) sums held in registers. Element (r, k) of A is
// a[r · a_row + k · a_column], so a transpose costs nothing, nor does a banded matrix (see convolve).
template <int ROWS, int VECTORS>
inline void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                 int64_t b_row, float* c, int64_t c_row, float alpha, float beta, const float* c0) {
  vec sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec columns[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) columns[v] = load(b + k * b_row + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const vec scalar = splat(a[r * a_row + k * a_column]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += scalar * columns[v];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = r * c_row + v * LANES;
      vec x = alpha * sums[r][v];
      if (beta != 0) x += beta * load(c0 + at);
      store(c + at, x);
    }
  }
}

template <int ROWS>
inline void row_of_tiles(int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                         const float* b, int64_t b_row, float* c, int64_t c_row, float alpha, float beta,
                         const float* c0) {
  constexpr int64_t WIDTH = LANES * TILE_VECTORS;
  int64_t j = 0;
  for (; j + WIDTH <= columns; j += WIDTH)
    tile<ROWS, TILE_VECTORS>(depth, a, a_row, a_column, b + j, b_row, c + j, c_row, alpha, beta, c0 + j);
  for (; j < columns; j += LANES)
    tile<ROWS, 1>(depth, a, a_row, a_column, b + j, b_row, c + j, c_row, alpha, beta, c0 + j);
}

// C (rows × columns) = alpha · A (rows × depth) · B (depth × columns) + beta · C₀; C₀ is laid out as C.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row,
                     int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row,
                     float alpha = 1, float beta = 0, const float* c0 = nullptr) {
  if (c0 == nullptr) c0 = c;
  int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    row_of_tiles<TILE_ROWS>(columns, depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row,
                            alpha, beta, c0 + i * c_row);
  a += i * a_row, c += i * c_row, c0 += i * c_row;
  switch (rows - i) {
    case 5: row_of_tiles<5>(columns, depth, a, a_row, a_column, b, b_row, c, c_row, alpha, beta, c0); break;
    case 4: row_of_tiles<4>(columns, depth, a, a_row, a_column, b, b_row, c, c_row, alpha, beta, c0); break;
    case 3: row_of_tiles<3>(columns, depth, a, a_row, a_column, b, b_row, c, c_row, alpha, beta, c0); break;
    case 2: row_of_tiles<2>(columns, depth, a, a_row, a_column, b, b_row, c, c_row, alpha, beta, c0); break;
    case 1: row_of_tiles<1>(columns, depth, a, a_row, a_column, b, b_row, c, c_row, alpha, beta, c0); break;
    default: break;
  }
}

// Exchanges the bit STEP of row and column in a square of LANES vectors, and then the higher ones.
template <int STEP>
inline void exchange(vec* rows) {
  if constexpr (STEP < LANES) {
    ivec low, high;
    for (int j = 0; j < LANES; ++j) {
      low[j] = j & STEP ? LANES + (j ^ STEP) : j;
      high[j] = j & STEP ? LANES + j : j ^ STEP;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if (!(i & STEP)) {
        const vec a = rows[i], b = rows[i + STEP];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + STEP] = __builtin_shuffle(a, b, high);
      }
    exchange<2 * STEP>(rows);
  }
}

inline void transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; i += LANES)
    for (int64_t j = 0; j < columns; j += LANES) {
      vec square[LANES];
#pragma GCC unroll 16
      for (int x = 0; x < LANES; ++x) square[x] = load(from + (i + x) * columns + j);
      exchange<1>(square);
#pragma GCC unroll 16
      for (int y = 0; y < LANES; ++y) store(to + (j + y) * rows + i, square[y]);
    }
}

}  // namespace nystrom
