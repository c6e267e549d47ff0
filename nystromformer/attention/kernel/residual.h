// A row's tokens in blocks of positions, and the residual convolution over them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "convolution.h"
#include "problem.h"
#include "vectors.h"

namespace nystrom {

// Blocks of at most BLOCK positions that begin and end with a real token.
template <class Body>
void for_blocks(const int32_t* tokens, const int32_t* const end, Body body) {
  while (tokens < end) {
    const int32_t* const next =
        std::lower_bound(tokens, std::min(end, tokens + BLOCK), int32_t(*tokens + BLOCK));
    body(tokens, next - tokens, int64_t(next[-1]) + 1 - *tokens);
    tokens = next;
  }
}
template <class Body>
void for_blocks(const Row& row, Body body) {
  for_blocks(row.tokens.data(), row.tokens.data() + row.size(), body);
}

// to[i] += from[position of token i − position of the first]
inline void add_at(const int32_t* tokens, int64_t count, const float* from, int64_t d, float* to) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < d; c += LANES)
      store(to + i * d + c, load(to + i * d + c) + load(from + (tokens[i] - tokens[0]) * d + c));
}

// The residual convolution of one head of one row, block by block as `for_blocks` gives them.
template <class Element>
struct Residual {
  const Problem& p;
  const int64_t row, head, d, k, half;
  float *band, *window, *grad_window, *result, *sums;

  Residual(Arena& arena, const Problem& p, int64_t row, int64_t head, bool turned_round)
      : p(p), row(row), head(head), d(p.width), k(p.kernel), half(k / 2), band(arena.take(k + 2 * TILE_ROWS)),
        window(arena.take((BLOCK + k) * d)), grad_window(arena.take((BLOCK + k) * d)),
        result(arena.take(BLOCK * d)), sums(arena.take(k * LANES)) {
    if (k) fill_band(band, p.conv_weight + head * k, k, turned_round);
    std::memset(sums, 0, 4 * k * LANES);
  }

  // to[i] += convolution(values) at token i
  void add(const Tokens<Element>& value, const int32_t* tokens, int64_t count, int64_t span, float* to) {
    if (k == 0) return;
    value.window(p, row, tokens[0] - half, tokens[0] + span + half, window);
    convolve(window, band, k, span, d, result);
    add_at(tokens, count, result, d, to);
  }
  // to[i] += gradient of value i; the kernel's is summed up
  void add_backward(const Tokens<Element>& value, const Tokens<Element>& grad_out, const int32_t* tokens,
                    int64_t count, int64_t span, float* to) {
    if (k == 0) return;
    value.window(p, row, tokens[0] - half, tokens[0] + span + half, window);
    grad_out.window(p, row, tokens[0] - half, tokens[0] + span + half, grad_window);
    correlate_all(window, grad_window + half * d, k, span, d, sums);
    convolve(grad_window, band, k, span, d, result);
    add_at(tokens, count, result, d, to);
  }
  void write_grad_weight() const {
    float* grad = p.grad_conv_weight + (row * p.heads + head) * k;
    for (int64_t j = 0; j < k; ++j) grad[j] = sum_of(load(sums + j * LANES));
  }
};

}  // namespace nystrom
