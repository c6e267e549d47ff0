// A row of at most M tokens: exact attention, forward and backward.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "problem.h"
#include "residual.h"
#include "softmax.h"
#include "vectors.h"

namespace nystrom {

// The row packed whole, and its attention matrix, n × w: w is n in whole vectors, where padding tokens are
// zeros in the factors and get no attention.
template <class Element>
struct ExactUnit {
  const Problem& p;
  const int64_t d, n, w;
  const Tokens<Element> value;
  Arena arena;
  float *query_nD, *key_wD, *value_wD, *transposed_Dw, *matrix_nw;

  ExactUnit(const Problem& p, const Row& row, int64_t head)
      : p(p), d(p.width), n(row.size()), w(whole_vectors(n)),
        value(p.value, row.index, head, d), arena(floats_needed(p)) {
    for (float** x : {&query_nD, &key_wD, &value_wD, &transposed_Dw}) *x = arena.take(w * d);
    matrix_nw = arena.take(w * w);
    for (float* x : {key_wD, value_wD}) std::memset(x + n * d, 0, 4 * (w - n) * d);
    Tokens<Element>(p.query, row.index, head, d).pack(row.tokens.data(), n, query_nD);
    Tokens<Element>(p.key, row.index, head, d).pack(row.tokens.data(), n, key_wD);
    value.pack(row.tokens.data(), n, value_wD);
    transpose(key_wD, w, d, transposed_Dw);
    multiply(n, w, d, query_nD, d, 1, transposed_Dw, w, matrix_nw, w, p.scale);
    for (int64_t i = 0; i < n; ++i) std::fill(matrix_nw + i * w + n, matrix_nw + (i + 1) * w, -INFINITY);
    softmax_of_rows(matrix_nw, n, w);
  }
};

template <class Element>
void exact_forward(const Problem& p, const Row& row, int64_t head) {
  ExactUnit<Element> u(p, row, head);
  const Tokens<Element> out(p.out, row.index, head, u.d);
  float* out_nD = u.query_nD;
  multiply(u.n, u.d, u.n, u.matrix_nw, u.w, 1, u.value_wD, u.d, out_nD, u.d);
  Residual<Element> residual(u.arena, p, row.index, head, false);
  for_blocks(row, [&](const int32_t* tokens, int64_t count, int64_t span) {
    residual.add(u.value, tokens, count, span, out_nD + (tokens - row.tokens.data()) * u.d);
  });
  for (int64_t i = 0; i < u.n; ++i) out.put(row.tokens[i], out_nD + i * u.d);
}

template <class Element>
void exact_backward(const Problem& p, const Row& row, int64_t head) {
  ExactUnit<Element> u(p, row, head);
  const int64_t d = u.d, n = u.n, w = u.w;
  const Tokens<Element> grad_out(p.grad_out, row.index, head, d), grad_query(p.grad_query, row.index, head, d),
      grad_key(p.grad_key, row.index, head, d), grad_value(p.grad_value, row.index, head, d);
  float *grad_out_nD = u.arena.take(w * d), *grad_nD = u.arena.take(w * d), *grad_scores_nw = u.arena.take(w * w);
  grad_out.pack(row.tokens.data(), n, grad_out_nD);
  multiply(n, d, n, u.matrix_nw, 1, w, grad_out_nD, d, grad_nD, d);
  Residual<Element> residual(u.arena, p, row.index, head, true);
  for_blocks(row, [&](const int32_t* tokens, int64_t count, int64_t span) {
    residual.add_backward(u.value, grad_out, tokens, count, span, grad_nD + (tokens - row.tokens.data()) * d);
  });
  residual.write_grad_weight();
  for (int64_t i = 0; i < n; ++i) grad_value.put(row.tokens[i], grad_nD + i * d);
  transpose(u.value_wD, w, d, u.transposed_Dw);
  multiply(n, w, d, grad_out_nD, d, 1, u.transposed_Dw, w, grad_scores_nw, w);
  softmax_of_rows_backward(grad_scores_nw, u.matrix_nw, n, w);
  multiply(n, d, n, grad_scores_nw, w, 1, u.key_wD, d, grad_nD, d, p.scale);
  for (int64_t i = 0; i < n; ++i) grad_query.put(row.tokens[i], grad_nD + i * d);
  multiply(n, d, n, grad_scores_nw, 1, w, u.query_nD, d, grad_nD, d, p.scale);
  for (int64_t i = 0; i < n; ++i) grad_key.put(row.tokens[i], grad_nD + i * d);
}

}  // namespace nystrom
