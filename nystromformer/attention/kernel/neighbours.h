// Exact attention to near tokens, Nyström attention to far ones: the mechanism of neighbours.py, forward.
//
// Shapes and names as in nystrom.cpp; w tokens of a block, C blocks of a row, S salient tokens. A block's near
// tokens are its own, those of the blocks beside it and the salient ones, whose keys and values stand side by
// side in a panel; all of the block share them, so that the far part is F̃ P with one P = Z' (Y − Σ_near Y) a
// block, M × D, Z' = Z diag(ratio), and beside it a column for values of one. Salient tokens are far from
// nothing, so they are in no Y.
//
// Included by nystrom.cpp, behind Unit.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "problem.h"
#include "residual.h"
#include "softmax.h"
#include "vectors.h"

namespace nystrom {

constexpr float SMALLEST = -60, LEAST = 1e-30f, LARGEST_RATIO = 8;  // as in neighbours.py

inline float dot(const float* a, const float* b, int64_t size) {
  vec total = {};
  for (int64_t i = 0; i < size; i += LANES) total += load(a + i) * load(b + i);
  return sum_of(total);
}
inline void add_multiple(float factor, const float* x, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += LANES) store(to + i, load(to + i) + factor * load(x + i));
}
inline void scale_by(float factor, int64_t size, float* x) {
  for (int64_t i = 0; i < size; i += LANES) store(x + i, factor * load(x + i));
}

// A block's three near blocks, each w × D or D × w, in a ring.
struct Ring {
  float* data;
  int64_t size;
  float* at(int64_t block) const { return data + block % 3 * size; }
};

// What forward and backward know of the blocks of one head of one row.
template <class Element>
struct Near {
  Unit<Element>& u;
  const Problem& p;
  const int64_t w, d, m, n, blocks, salient, panel, span;  // S in whole vectors; 3 w + that: a row of near scores
  int32_t* const ranks_S;                     // kept, ascending
  float *const log_near_n, *const log_far_n;  // kept: of Σ_near E, and of Σ exp(q·k̃/√D)
  float *inverse_T, *ratio_M;                 // Z'ᵀ; exp(log ratio − its largest)
  float log_scale;                            // that largest
  float *parts, *part_sums;                   // Y of each block, and its column for ones
  float *total, *total_sums_M, *far, *far_sums_M, *mixed, *mixed_sums_M, *counts_M;
  float *query_wD, *out_wD, *scores_wM, *scores_wS;
  float *panel_keys, *panel_keys_T, *panel_values;  // S × D, D × S, S × D
  float *weight_w, *far_weight_w, *sum_w, *least_w;

  explicit Near(Unit<Element>& u)
      : u(u), p(u.p), w(p.neighbours), d(u.d), m(u.m), n(u.n), blocks((n + w - 1) / w),
        salient(std::min(p.salient, n)), panel(whole_vectors(salient)), span(3 * w + panel),
        ranks_S(p.salient_ranks + u.index * p.salient),
        log_near_n(p.near_log_sums + u.index * p.positions), log_far_n(p.far_log_sums + u.index * p.positions) {
    Arena& arena = u.arena;
    parts = arena.take((blocks + 1) * m * d), part_sums = arena.take((blocks + 1) * m);
    for (float** x : {&total, &far, &mixed}) *x = arena.take(m * d);
    for (float** x : {&ratio_M, &total_sums_M, &far_sums_M, &mixed_sums_M, &counts_M}) *x = arena.take(m);
    inverse_T = arena.take(m * m);
    for (float** x : {&query_wD, &out_wD}) *x = arena.take(w * d);
    scores_wM = arena.take(w * m), scores_wS = arena.take(w * span);
    for (float** x : {&panel_keys, &panel_keys_T, &panel_values}) *x = arena.take(panel * d);
    for (float** x : {&weight_w, &far_weight_w, &sum_w, &least_w}) *x = arena.take(w);
  }
  void take_panel() {
    for (float* x : {panel_keys, panel_values}) std::memset(x + salient * d, 0, 4 * (panel - salient) * d);
    for (int64_t s = 0; s < salient; ++s) {
      u.key.get(u.row.tokens[ranks_S[s]], panel_keys + s * d);
      u.value.get(u.row.tokens[ranks_S[s]], panel_values + s * d);
    }
    transpose(panel_keys, panel, d, panel_keys_T);
  }

  Ring ring() { return {u.arena.take(3 * w * d), w * d}; }
  const int32_t* tokens(int64_t block) const { return u.row.tokens.data() + block * w; }
  int64_t count(int64_t block) const { return std::min(w, n - block * w); }
  // Where the salient tokens from a block on begin.
  int64_t salient_from(int64_t block) const {
    return std::lower_bound(ranks_S, ranks_S + salient, int32_t(std::min(std::max<int64_t>(block, 0) * w, n))) - ranks_S;
  }
  int64_t near_from(int64_t block) const { return std::max<int64_t>(block - 1, 0); }
  int64_t near_until(int64_t block) const { return std::min(block + 2, blocks); }

  // A block's tokens, zeros behind the last.
  void pack(const Tokens<Element>& x, int64_t block, float* to) const {
    x.pack(tokens(block), count(block), to);
    std::memset(to + count(block) * d, 0, 4 * (w - count(block)) * d);
  }

  // From Z and the sums of B̃'s rows: Z', and how the unnormalised factors compare. What is cut off a ratio is
  // a constant to the backward pass.
  void weigh() {
    const float most = std::log(LARGEST_RATIO * float(n) / float(m));
    for (int64_t t = 0; t < m; ++t) {  // log Σ exp(q̃·k̃/√D), from the largest entry of Ã's row
      const float* row = u.kernel_MM + t * m;
      const int64_t at = std::max_element(row, row + m) - row;
      ratio_M[t] = u.log_sums_M[t] - (dot(u.query_MD + t * d, u.scaled_key_MD + at * d, d) - std::log(row[at]));
      ratio_M[t] = std::min(ratio_M[t], most);
    }
    log_scale = *std::max_element(ratio_M, ratio_M + m);
    for (int64_t t = 0; t < m; ++t) {
      ratio_M[t] = std::exp(ratio_M[t] - log_scale);
      for (int64_t s = 0; s < m; s += LANES)
        store(inverse_T + t * m + s, ratio_M[t] * load(u.inverse_T + t * m + s));
    }
  }

  // Weights of a block's tokens, w × M: none at salient ones
  void leave_out_salient(int64_t block, float* weights_wM) const {
    for (int64_t s = salient_from(block); s < salient_from(block + 1); ++s)
      std::memset(weights_wM + (ranks_S[s] - block * w) * m, 0, 4 * m);
  }

  // What of Y is far from a block, and how many tokens of each segment; false where nothing is.
  bool take_far(int64_t block) {
    const int64_t before = std::max<int64_t>((block - 1) * w, 0), after = (block + 2) * w;
    float tokens_far = 0;
    const int64_t size = n / m, longer = n % m;
    for (int64_t s = 0, first = 0, last; s < m; ++s, first = last) {
      last = first + size + (s < longer);
      counts_M[s] = float(std::max<int64_t>(std::min(last, before) - first, 0) +
                          std::max<int64_t>(last - std::max(first, after), 0));
      tokens_far += counts_M[s];
    }
    const int64_t around_from = salient_from(block - 1), around_until = salient_from(block + 2);
    for (int64_t s = 0; s < salient; ++s)
      if (s < around_from || s >= around_until) --counts_M[segment_of(ranks_S[s], n, m)], --tokens_far;
    subtract_near(block, total, parts, m * d, far);
    subtract_near(block, total_sums_M, part_sums, m, far_sums_M);
    if (tokens_far > 0) return true;
    std::memset(far, 0, 4 * m * d);
    std::memset(far_sums_M, 0, 4 * m);
    return false;
  }
  void subtract_near(int64_t block, const float* all, const float* each, int64_t size, float* to) const {
    const float* from = each + near_from(block) * size;
    const int64_t many = near_until(block) - near_from(block);
    for (int64_t i = 0; i < size; i += LANES) {
      vec near = load(from + i);
      for (int64_t b = 1; b < many; ++b) near += load(from + b * size + i);
      store(to + i, load(all + i) - near);
    }
  }
  // The last column of P
  void mix_sums() {
    std::memset(mixed_sums_M, 0, 4 * m);
    for (int64_t t = 0; t < m; ++t) add_multiple(far_sums_M[t], inverse_T + t * m, m, mixed_sums_M);
  }

  // Scores of a block's queries and its near tokens; those of no token, or of one a second time, are −∞.
  void near_scores(int64_t block, const Ring& keys_T, float* scores) const {
    float* to = scores;
    for (int64_t b = near_from(block); b < near_until(block); ++b, to += w) {
      multiply(count(block), w, d, query_wD, d, 1, keys_T.at(b), w, to, span, p.scale);
      if (count(b) < w)
        for (int64_t i = 0; i < count(block); ++i)
          std::fill(to + i * span + count(b), to + i * span + w, -INFINITY);
    }
    if (!panel_columns(block)) return;
    multiply(count(block), panel, d, query_wD, d, 1, panel_keys_T, panel, to, span, p.scale);
    const int64_t around_from = salient_from(block - 1), around_until = salient_from(block + 2);
    for (int64_t i = 0; i < count(block); ++i, to += span) {
      std::fill(to + around_from, to + around_until, -INFINITY);
      std::fill(to + salient, to + panel, -INFINITY);
    }
  }
  int64_t columns_around(int64_t block) const { return (near_until(block) - near_from(block)) * w; }
  int64_t panel_columns(int64_t block) const {  // none where all salient tokens lie around
    return salient_from(block + 2) - salient_from(block - 1) < salient ? panel : 0;
  }
  int64_t near_columns(int64_t block) const { return columns_around(block) + panel_columns(block); }
};

// The first token and those with the largest sums, of equals the earlier ones.
inline void choose_salient(const float* sums_n, int64_t n, int64_t salient, int32_t* ranks_S) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin() + 1, order.begin() + salient - 1, order.end(), [&](int32_t a, int32_t b) {
    return sums_n[a] != sums_n[b] ? sums_n[a] > sums_n[b] : a < b;
  });
  std::copy_n(order.begin(), salient, ranks_S);
  std::sort(ranks_S, ranks_S + salient);
}

// Y block by block, M × D; log sums of B̃'s rows; the salient tokens
template <class Element>
void near_gather(Near<Element>& x) {
  Unit<Element>& u = x.u;
  const int64_t m = x.m, d = x.d;
  RunningSoftmax softmax{u.column_sums_M, u.row_sums_M, u.arena.take(m), m};
  float* largest = u.arena.take(x.blocks * m);
  // With more salient tokens than the first, which they are is known when every weight is.
  const bool chooses = x.salient > 1;
  float *weights = u.arena.take((chooses ? x.blocks : 1) * x.w * m), *sums_n = u.arena.take(chooses ? x.n : 0);
  const auto weights_of = [&](int64_t b) { return weights + (chooses ? b * x.w * m : 0); };
  const auto sum_up = [&](int64_t b) {
    float *scores = weights_of(b), *sums = x.part_sums + b * m;
    x.pack(u.value, b, x.out_wD);
    x.leave_out_salient(b, scores);
    std::memset(sums, 0, 4 * m);
    for (int64_t i = 0; i < x.count(b); ++i) add_multiple(1, scores + i * m, m, sums);
    multiply(m, d, x.count(b), scores, 1, m, x.out_wD, d, x.parts + b * m * d, d);
  };
  x.ranks_S[0] = 0;
  softmax.start();
  for (int64_t b = 0; b < x.blocks; ++b) {
    x.pack(u.key, b, x.query_wD);
    multiply(x.count(b), m, d, x.query_wD, d, 1, u.scaled_query_T, m, weights_of(b), m);
    softmax.take(weights_of(b), x.count(b));
    std::memcpy(largest + b * m, softmax.largest_M, 4 * m);
    if (!chooses) sum_up(b);
  }
  for (int64_t t = 0; t < m; ++t) u.log_sums_M[t] = softmax.largest_M[t] + std::log(softmax.total_M[t]);
  for (int64_t b = 0; b < x.blocks; ++b)
    for (float *factor = largest + b * m, *end = factor + m, *of = u.log_sums_M; factor < end; factor += LANES, of += LANES)
      store(factor, exponential(load(factor) - load(of)));
  if (chooses) {
    for (int64_t i = 0; i < x.n; ++i) {
      const float sum = dot(weights + i * m, largest + i / x.w * m, m);
      sums_n[i] = sum == sum ? sum : 0;  // there is an order without NaN alone
    }
    choose_salient(sums_n, x.n, x.salient, x.ranks_S);
    for (int64_t b = 0; b < x.blocks; ++b) sum_up(b);
  }
  std::memset(x.total, 0, 4 * m * d);
  std::memset(x.total_sums_M, 0, 4 * m);
  for (int64_t b = 0; b < x.blocks; ++b) {
    float *part = x.parts + b * m * d, *sums = x.part_sums + b * m, *factor = largest + b * m;
    for (int64_t t = 0; t < m; t += LANES) {
      store(sums + t, load(factor + t) * load(sums + t));
      store(x.total_sums_M + t, load(x.total_sums_M + t) + load(sums + t));
    }
    scale_rows(part, m, d, factor);
    add_multiple(1, part, m * d, x.total);
  }
}

// out = (Σ_near E v + s Σ_far Ê v) / (Σ_near E + Σ_far Ê) + convolution(V)
template <class Element>
void near_spread(Near<Element>& x) {
  Unit<Element>& u = x.u;
  const int64_t w = x.w, m = x.m, d = x.d;
  const Tokens<Element> out(x.p.out, u.row.index, u.head, d);
  Residual<Element> residual(u.arena, x.p, u.row.index, u.head, false);
  const Ring keys_T = x.ring(), values = x.ring();
  float *key_wD = u.arena.take(w * d), *far_largest_w = u.arena.take(w), *near_largest_w = u.arena.take(w);
  float *far_total_w = u.arena.take(w), *near_total_w = u.arena.take(w);
  const auto take = [&](int64_t b) {
    x.pack(u.key, b, key_wD);
    transpose(key_wD, w, d, keys_T.at(b));
    x.pack(u.value, b, values.at(b));
  };
  const float least_scale = std::exp(-x.log_scale);
  x.take_panel();
  take(0);
  for (int64_t c = 0; c < x.blocks; ++c) {
    if (c + 1 < x.blocks) take(c + 1);
    const int64_t count = x.count(c), columns = x.near_columns(c);
    x.pack(u.query, c, x.query_wD);
    x.take_far(c);
    x.mix_sums();
    multiply(m, d, m, x.inverse_T, 1, m, x.far, d, x.mixed, d);
    multiply(count, m, d, x.query_wD, d, 1, u.scaled_key_T, m, x.scores_wM, m);
    x.near_scores(c, keys_T, x.scores_wS);
    for (int64_t i = 0; i < count; ++i) {
      float *f = x.scores_wM + i * m, *e = x.scores_wS + i * x.span;
      exponentials(f, m, far_largest_w[i], far_total_w[i]);
      x.sum_w[i] = dot(f, x.mixed_sums_M, m);
      x.least_w[i] = dot(f, x.counts_M, m);
      exponentials(e, columns, near_largest_w[i], near_total_w[i]);
    }
    float *log_near = x.log_near_n + c * w, *log_far = x.log_far_n + c * w;
    for (int64_t i = 0; i < w; i += LANES) {
      const vec near_top = load(near_largest_w + i), far_top = load(far_largest_w + i);
      const vec near_total = load(near_total_w + i);
      const vec log_near_sum = near_top + logarithm(near_total);
      const vec log_far_sum = far_top + logarithm(load(far_total_w + i));
      const vec log_far_unit = log_far_sum + splat(x.log_scale), top = larger(log_near_sum, log_far_unit);
      const vec near_share = exponential(larger(log_near_sum - top, splat(SMALLEST)));
      const vec far_share = exponential(log_far_unit - top);
      // of the row's unnormalised weights
      const vec far_inverse = splat(1) / load(far_total_w + i);
      const vec sum = far_inverse * load(x.sum_w + i), positive = larger(sum, vec{});
      const vec least = larger(splat(least_scale) * far_inverse * load(x.least_w + i), splat(LEAST));
      const vec trust = positive < least ? positive / least : splat(1);
      const vec total = near_share + far_share * positive;
      store(x.weight_w + i, near_share / (total * near_total));
      store(x.far_weight_w + i, trust * far_share / total * far_inverse);
      put_some(log_near + i, log_near_sum, count - i);
      put_some(log_far + i, log_far_sum, count - i);
    }
    for (int64_t i = 0; i < count; ++i) {
      scale_by(x.far_weight_w[i], m, x.scores_wM + i * m);
      scale_by(x.weight_w[i], columns, x.scores_wS + i * x.span);
    }
    multiply(count, d, m, x.scores_wM, m, 1, x.mixed, d, x.out_wD, d);
    const float* e = x.scores_wS;
    for (int64_t b = x.near_from(c); b < x.near_until(c); ++b, e += w)
      multiply(count, d, w, e, x.span, 1, values.at(b), d, x.out_wD, d, 1, 1);
    if (x.panel_columns(c)) multiply(count, d, x.panel, e, x.span, 1, x.panel_values, d, x.out_wD, d, 1, 1);
    for_blocks(x.tokens(c), x.tokens(c) + count, [&](const int32_t* tokens, int64_t some, int64_t span) {
      residual.add(u.value, tokens, some, span, x.out_wD + (tokens - x.tokens(c)) * d);
    });
    for (int64_t i = 0; i < count; ++i) out.put(x.tokens(c)[i], x.out_wD + i * d);
  }
}

template <class Element>
void near_forward(const Problem& p, const Row& row, int64_t head) {
  Unit<Element> u(p, row, head);
  segment_means(u.query, row, u.m, u.first, u.query_MD);
  segment_means(u.key, row, u.m, u.first, u.key_MD);
  const Norms norms = u.prepare_landmarks();
  float *steps = u.arena.take(3 * u.m * u.m), *work = u.arena.take(u.m * u.m);
  iterate(u.kernel_MM, u.kernel_T, u.m, p.iterations, norms, false, steps, work, u.inverse_T);
  Near<Element> x(u);
  near_gather(x);
  x.weigh();
  near_spread(x);
}

}  // namespace nystrom
