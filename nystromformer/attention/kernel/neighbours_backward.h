// The backward pass of neighbours.h, which is read from its end.
//
// The output depends on exponentials that are never normalised each for itself, Σ E v / Σ E, and so with
// z = grad_out · out no softmax has a mean of its own to subtract: each weight's gradient, with what it weighs
// compared with z, times the weight is the gradient of its score.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "neighbours.h"

namespace nystrom {

// B̃ᵀ of a block's tokens, w × M; 0 at salient tokens, which are far from nothing
template <class Element>
void factor_T(Near<Element>& x, int64_t block, const float* key_wD, float* scores) {
  const int64_t m = x.m, count = x.count(block);
  multiply(count, m, x.d, key_wD, x.d, 1, x.u.scaled_query_T, m, scores, m);
  for (int64_t t = 0; t < m; t += LANES) {
    const vec log_sum = load(x.u.log_sums_M + t);
    for (int64_t i = t; i < count * m; i += m) store(scores + i, exponential(load(scores + i) - log_sum));
  }
  x.leave_out_salient(block, scores);
}

// Yᵀ block by block, D × M, from the log sums that forward kept
template <class Element>
void near_gather_again(Near<Element>& x) {
  Unit<Element>& u = x.u;
  const int64_t m = x.m, d = x.d;
  std::memset(x.total, 0, 4 * m * d);
  std::memset(x.total_sums_M, 0, 4 * m);
  for (int64_t b = 0; b < x.blocks; ++b) {
    const int64_t count = x.count(b);
    float *part = x.parts + b * m * d, *sums = x.part_sums + b * m;
    x.pack(u.key, b, x.query_wD);
    x.pack(u.value, b, x.out_wD);
    factor_T(x, b, x.query_wD, x.scores_wM);
    std::memset(sums, 0, 4 * m);
    for (int64_t i = 0; i < count; ++i) add_multiple(1, x.scores_wM + i * m, m, sums);
    multiply(d, m, count, x.out_wD, 1, d, x.scores_wM, m, part, m);
    add_multiple(1, part, m * d, x.total);
    add_multiple(1, sums, m, x.total_sums_M);
  }
}

// Gradients of Z, of log Σ exp(Q̃ K̃ᵀ/√D), of K̃ / √D, of queries as far as they are known, of near keys and
// values. `parts` changes from Y of each block to the gradient of what is far from it.
template <class Element>
struct NearSpreadBackward {
  Near<Element>& x;
  Unit<Element>& u;
  const int64_t w, m, d, span;
  const Tokens<Element> grad_out, grad_query, grad_key, grad_value;
  const Ring keys, keys_T, values_T, grad_keys, grad_values;
  float *natural_MM, *grad_inverse_MM, *grad_log_sums_M, *grad_key_MD;  // Z'; results
  float *panel_values_T, *grad_panel_keys, *grad_panel_values;         // of salient tokens: D × S; S × D
  float *value_wD, *grad_out_wD, *grad_scores_wM, *grad_scores_wS, *grad_mixed, *grad_mixed_sums_M, *grad_far;
  float *grad_far_sums_M, *total, *total_sums_M;
  float *x_w, *y_w, *z_w, *grad_sum_w, *grad_least_w;

  NearSpreadBackward(Near<Element>& x, float* grad_key_MD)
      : x(x), u(x.u), w(x.w), m(x.m), d(x.d), span(x.span), grad_out(x.p.grad_out, u.row.index, u.head, d),
        grad_query(x.p.grad_query, u.row.index, u.head, d), grad_key(x.p.grad_key, u.row.index, u.head, d),
        grad_value(x.p.grad_value, u.row.index, u.head, d), keys(x.ring()), keys_T(x.ring()),
        values_T(x.ring()), grad_keys(x.ring()), grad_values(x.ring()), grad_key_MD(grad_key_MD) {
    Arena& arena = u.arena;
    for (float** y : {&natural_MM, &grad_inverse_MM}) *y = arena.take(m * m);
    for (float** y : {&grad_log_sums_M, &grad_mixed_sums_M, &grad_far_sums_M, &total_sums_M}) *y = arena.take(m);
    for (float** y : {&panel_values_T, &grad_panel_keys, &grad_panel_values}) *y = arena.take(x.panel * d);
    for (float** y : {&value_wD, &grad_out_wD}) *y = arena.take(w * d);
    grad_scores_wM = arena.take(w * m), grad_scores_wS = arena.take(w * span);
    for (float** y : {&grad_mixed, &grad_far, &total}) *y = arena.take(m * d);
    for (float** y : {&x_w, &y_w, &z_w, &grad_sum_w, &grad_least_w}) *y = arena.take(w);
  }

  void run() {
    std::memset(grad_inverse_MM, 0, 4 * m * m);
    for (float* y : {grad_log_sums_M, total_sums_M}) std::memset(y, 0, 4 * m);
    for (float* y : {grad_key_MD, total}) std::memset(y, 0, 4 * m * d);
    for (float* y : {grad_panel_keys, grad_panel_values}) std::memset(y, 0, 4 * x.panel * d);
    x.take_panel();
    transpose(x.panel_values, x.panel, d, panel_values_T);
    transpose(x.inverse_T, m, m, natural_MM);
    take(0);
    for (int64_t c = 0; c < x.blocks; ++c) {
      if (c + 1 < x.blocks) take(c + 1);
      block(c);
      if (c > 0) put(c - 1);
    }
    put(x.blocks - 1);
    for (int64_t t = 0; t < m; ++t)
      for (int64_t s = 0; s < m; ++s) grad_inverse_MM[s * m + t] *= x.ratio_M[t];
  }

 private:
  void take(int64_t b) {
    x.pack(u.key, b, keys.at(b));
    transpose(keys.at(b), w, d, keys_T.at(b));
    x.pack(u.value, b, value_wD);
    transpose(value_wD, w, d, values_T.at(b));
    std::memset(grad_keys.at(b), 0, 4 * w * d);
    std::memset(grad_values.at(b), 0, 4 * w * d);
  }
  void put(int64_t b) {
    for (int64_t i = 0; i < x.count(b); ++i) {
      grad_key.put(x.tokens(b)[i], grad_keys.at(b) + i * d);
      grad_value.put(x.tokens(b)[i], grad_values.at(b) + i * d);
    }
  }

  void block(int64_t c) {
    const int64_t count = x.count(c);
    const bool any_far = x.take_far(c);
    const int64_t around = x.columns_around(c), panel = x.panel_columns(c);
    x.pack(u.query, c, x.query_wD);
    x.pack(grad_out, c, grad_out_wD);
    // The shares again, and what grad_out says about each
    x.mix_sums();
    multiply(d, m, m, x.far, m, 1, x.inverse_T, m, x.mixed, m);  // Pᵀ
    multiply(count, m, d, x.query_wD, d, 1, u.scaled_key_T, m, x.scores_wM, m);
    multiply(count, m, d, grad_out_wD, d, 1, x.mixed, m, grad_scores_wM, m);
    x.near_scores(c, keys_T, x.scores_wS);
    for (int64_t b = x.near_from(c), j = 0; b < x.near_until(c); ++b, j += w)
      multiply(count, w, d, grad_out_wD, d, 1, values_T.at(b), w, grad_scores_wS + j, span);
    if (panel) multiply(count, panel, d, grad_out_wD, d, 1, panel_values_T, panel, grad_scores_wS + around, span);
    shares_of_rows(c);
    weights_of_rows(c);
    for (int64_t i = 0; i < count; ++i) scores_backward(c, i);
    // What reads the weights and their scores' gradients
    multiply(d, m, count, grad_out_wD, 1, d, x.scores_wM, m, grad_mixed, m);  // of Pᵀ
    multiply(count, d, m, grad_scores_wM, m, 1, u.scaled_key_MD, d, x.out_wD, d);
    multiply(m, d, count, grad_scores_wM, 1, m, x.query_wD, d, grad_key_MD, d, 1, 1);
    for (int64_t b = x.near_from(c), j = 0; b < x.near_until(c); ++b, j += w) {
      multiply(count, d, w, grad_scores_wS + j, span, 1, keys.at(b), d, x.out_wD, d, x.p.scale, 1);
      multiply(w, d, count, grad_scores_wS + j, 1, span, x.query_wD, d, grad_keys.at(b), d, x.p.scale, 1);
      multiply(w, d, count, x.scores_wS + j, 1, span, grad_out_wD, d, grad_values.at(b), d, 1, 1);
    }
    if (panel) {
      multiply(count, d, panel, grad_scores_wS + around, span, 1, x.panel_keys, d, x.out_wD, d, x.p.scale, 1);
      multiply(panel, d, count, grad_scores_wS + around, 1, span, x.query_wD, d, grad_panel_keys, d, x.p.scale, 1);
      multiply(panel, d, count, x.scores_wS + around, 1, span, grad_out_wD, d, grad_panel_values, d, 1, 1);
    }
    for (int64_t i = 0; i < count; ++i) grad_query.put(x.tokens(c)[i], x.out_wD + i * d);
    far_backward(c, any_far);
  }

  // F̃ and near softmax, and each row's sums over them
  void shares_of_rows(int64_t c) {
    const float *log_near = x.log_near_n + c * w, *log_far = x.log_far_n + c * w;
    const int64_t columns = x.near_columns(c);
    for (int64_t i = 0; i < x.count(c); ++i) {
      float *f = x.scores_wM + i * m, *e = x.scores_wS + i * span;
      const float *from_far = grad_scores_wM + i * m, *from_near = grad_scores_wS + i * span;
      vec sum = {}, least = {}, y = {}, near = {};
      for (int64_t s = 0; s < m; s += LANES) {
        const vec share = exponential(load(f + s) - splat(log_far[i]));
        store(f + s, share);
        sum += share * load(x.mixed_sums_M + s);
        least += share * load(x.counts_M + s);
        y += share * load(from_far + s);
      }
      for (int64_t j = 0; j < columns; j += LANES) {
        const vec share = exponential(load(e + j) - splat(log_near[i]));
        store(e + j, share);
        near += share * load(from_near + j);
      }
      x.sum_w[i] = sum_of(sum), x.least_w[i] = sum_of(least), y_w[i] = sum_of(y), x_w[i] = sum_of(near);
    }
  }

  // What each row's shares are multiplied by in the output, and the gradients of its two sums
  void weights_of_rows(int64_t c) {
    const float *log_near = x.log_near_n + c * w, *log_far = x.log_far_n + c * w;
    const float least_scale = std::exp(-x.log_scale);
    for (int64_t i = 0; i < w; i += LANES) {
      vec near_log = {}, far_log = {};
      for (int j = 0; j < LANES && i + j < x.count(c); ++j) near_log[j] = log_near[i + j], far_log[j] = log_far[i + j];
      far_log += splat(x.log_scale);
      const vec top = larger(near_log, far_log), sum = load(x.sum_w + i), positive = larger(sum, vec{});
      const vec near_share = exponential(larger(near_log - top, splat(SMALLEST)));
      const vec far_share = exponential(far_log - top), total = near_share + far_share * positive;
      const vec least = larger(splat(least_scale) * load(x.least_w + i), splat(LEAST));
      const auto fades = positive < least;
      const vec trust = fades ? positive / least : splat(1);
      const vec near_weight = near_share / total, far_weight = far_share / total, y = load(y_w + i);
      const vec z = near_weight * load(x_w + i) + far_weight * trust * y;
      const vec fading = (sum > vec{}) & fades ? y / least : vec{};
      store(x.weight_w + i, near_weight);
      store(x.far_weight_w + i, far_weight * trust);
      store(z_w + i, z);
      store(grad_sum_w + i, far_weight * (fading - (sum > vec{} ? z : vec{})));
      store(grad_least_w + i, -far_weight * fading * trust * splat(least_scale));
    }
  }

  void scores_backward(int64_t c, int64_t i) {
    float *f = x.scores_wM + i * m, *e = x.scores_wS + i * span;
    float *from_far = grad_scores_wM + i * m, *from_near = grad_scores_wS + i * span;
    const vec weight = splat(x.weight_w[i]), far_weight = splat(x.far_weight_w[i]), z = splat(z_w[i]);
    const vec grad_sum = splat(grad_sum_w[i]), grad_least = splat(grad_least_w[i]);
    if (i == 0) std::memset(grad_mixed_sums_M, 0, 4 * m);
    for (int64_t s = 0; s < m; s += LANES) {
      const vec share = load(f + s);
      const vec grad = far_weight * load(from_far + s) + grad_sum * load(x.mixed_sums_M + s);
      store(from_far + s, share * (grad + grad_least * load(x.counts_M + s)));
      store(grad_mixed_sums_M + s, load(grad_mixed_sums_M + s) + grad_sum * share);
      store(f + s, far_weight * share);
    }
    for (int64_t j = 0; j < x.near_columns(c); j += LANES) {
      const vec share = weight * load(e + j);
      store(e + j, share);
      store(from_near + j, share * (load(from_near + j) - z));
    }
  }

  // P = Z' far: from the gradients of Pᵀ and its sums
  void far_backward(int64_t c, bool any_far) {
    // far_c + 1 reads Y of c, and no earlier one: the slot of c − 1 is free.
    float *to = x.parts + (c > 0 ? c - 1 : x.blocks) * m * d;
    float *sums = x.part_sums + (c > 0 ? c - 1 : x.blocks) * m;
    if (!any_far) {
      std::memset(to, 0, 4 * m * d), std::memset(sums, 0, 4 * m);
      return;
    }
    multiply(d, m, m, grad_mixed, m, 1, natural_MM, m, to, m);
    std::memset(sums, 0, 4 * m);
    for (int64_t s = 0; s < m; ++s) {
      add_multiple(grad_mixed_sums_M[s], natural_MM + s * m, m, sums);
      add_multiple(grad_mixed_sums_M[s], x.far_sums_M, m, grad_inverse_MM + s * m);
    }
    multiply(m, m, d, grad_mixed, 1, m, x.far, m, grad_inverse_MM, m, 1, 1);
    for (int64_t t = 0; t < m; t += LANES) {
      vec lost = load(sums + t) * load(x.far_sums_M + t);
      for (int64_t i = t; i < m * d; i += m) lost += load(to + i) * load(x.far + i);
      store(grad_log_sums_M + t, load(grad_log_sums_M + t) - lost);
    }
    add_multiple(1, to, m * d, total);
    add_multiple(1, sums, m, total_sums_M);
  }
};

// Y, and the convolution: gradients of keys and values, and of Q̃ / √D (added to)
template <class Element>
void near_gather_backward(Near<Element>& x, const NearSpreadBackward<Element>& spread,
                          const float* grad_key_MD, float* grad_query_MD) {
  Unit<Element>& u = x.u;
  const int64_t m = x.m, d = x.d;
  Residual<Element> residual(u.arena, x.p, u.row.index, u.head, true);
  float *grad_far_T = x.far, *grad_far = u.arena.take(m * d), *grad_sums_M = x.far_sums_M;
  float *key_wD = x.query_wD, *value_wD = x.out_wD, *grad_wD = spread.value_wD, *scores = x.scores_wM;
  float *grad_scores = spread.grad_scores_wM, *known_wD = spread.grad_out_wD;
  for (int64_t b = 0; b < x.blocks; ++b) {
    const int64_t count = x.count(b);
    const int32_t* tokens = x.tokens(b);
    const auto add_of_salient = [&](const float* panel) {
      for (int64_t s = x.salient_from(b); s < x.salient_from(b + 1); ++s)
        add_multiple(1, panel + s * d, d, grad_wD + (x.ranks_S[s] - b * x.w) * d);
    };
    std::memcpy(grad_far_T, spread.total, 4 * m * d);
    std::memcpy(grad_sums_M, spread.total_sums_M, 4 * m);
    for (int64_t c = x.near_from(b); c < x.near_until(b); ++c) {
      const int64_t slot = c > 0 ? c - 1 : x.blocks;
      add_multiple(-1, x.parts + slot * m * d, m * d, grad_far_T);
      add_multiple(-1, x.part_sums + slot * m, m, grad_sums_M);
    }
    transpose(grad_far_T, d, m, grad_far);
    x.pack(u.key, b, key_wD);
    x.pack(u.value, b, value_wD);
    factor_T(x, b, key_wD, scores);
    multiply(count, m, d, value_wD, d, 1, grad_far_T, m, grad_scores, m);
    for (int64_t t = 0; t < m; t += LANES) {
      const vec ones = load(grad_sums_M + t);
      for (int64_t i = t; i < count * m; i += m)
        store(grad_scores + i, load(scores + i) * (load(grad_scores + i) + ones));
    }
    multiply(m, d, count, grad_scores, 1, m, key_wD, d, grad_query_MD, d, 1, 1);
    spread.grad_key.pack(tokens, count, known_wD);
    multiply(count, d, m, grad_scores, m, 1, u.scaled_query_MD, d, grad_wD, d, 1, 1, known_wD);
    add_of_salient(spread.grad_panel_keys);
    add_to_segments(grad_key_MD, b * x.w, count, u.n, m, d, 1, grad_wD);
    for (int64_t i = 0; i < count; ++i) spread.grad_key.put(tokens[i], grad_wD + i * d);
    spread.grad_value.pack(tokens, count, known_wD);
    multiply(count, d, m, scores, m, 1, grad_far, d, grad_wD, d, 1, 1, known_wD);
    add_of_salient(spread.grad_panel_values);
    for_blocks(tokens, tokens + count, [&](const int32_t* some_tokens, int64_t some, int64_t span) {
      residual.add_backward(u.value, spread.grad_out, some_tokens, some, span, grad_wD + (some_tokens - tokens) * d);
    });
    for (int64_t i = 0; i < count; ++i) spread.grad_value.put(tokens[i], grad_wD + i * d);
  }
  residual.write_grad_weight();
}

template <class Element>
void near_backward(const Problem& p, const Row& row, int64_t head) {
  Unit<Element> u(p, row, head);
  const int64_t m = u.m, d = u.d;
  float *grad_query_MD = u.arena.take(m * d), *grad_key_MD = u.arena.take(m * d);
  const Norms norms = u.prepare_landmarks();
  Near<Element> x(u);
  x.weigh();
  near_gather_again(x);
  NearSpreadBackward<Element> spread(x, grad_key_MD);
  spread.run();
  scale_by(p.scale, m * d, grad_key_MD);
  inverse_backward(u, norms, spread.grad_inverse_MM, spread.grad_log_sums_M, grad_query_MD, grad_key_MD);
  near_gather_backward(x, spread, grad_key_MD, grad_query_MD);
  add_query_means(u, grad_query_MD);
}

}  // namespace nystrom
