// Nyström attention on a CPU, forward and backward: what composed.py
// computes, in one pass over the tokens.
//
// Shapes: N positions of a row, n of them real tokens, D head width, M landmarks, K kernel width.
// Names are those of native.py and of the paper; `_T` marks a transpose.
//
// A unit of work is one head of one row, computed by one thread in an order that depends on nothing
// else: results are the same bits for any number of threads, any batch mates and any padding. Tokens
// are packed BLOCK at a time, as float32 and without padding, so that everything between reading a
// token and writing its result stays in the cache; no n × M matrix reaches memory.
//
// Compiled on the machine it runs on, see native.py; D and M are multiples of 16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "exact.h"
#include "inverse.h"
#include "problem.h"
#include "residual.h"
#include "softmax.h"
#include "vectors.h"

namespace nystrom {

// What both passes know of one head of one row, and memory for a block of its tokens.
template <class Element>
struct Unit {
  const Problem& p;
  const Row& row;
  const int64_t head, m, d, n, index;
  const Tokens<Element> query, key, value;
  float *const query_MD, *const key_MD, *const inverse_T, *const gathered_MD, *const log_sums_M;  // kept
  Arena arena;
  float *first, *second, *scores, *grad_scores;  // BLOCK × D, or BLOCK × M
  float *kernel_MM, *kernel_T, *mixed_MD;        // Ã, Ãᵀ, X = Z Y
  float *scaled_query_MD, *scaled_query_T, *scaled_key_MD, *scaled_key_T;  // Q̃ / √D, K̃ / √D
  float *column_sums_M, *row_sums_M;

  Unit(const Problem& p, const Row& row, int64_t head)
      : p(p), row(row), head(head), m(p.landmarks), d(p.width), n(row.size()),
        index(row.index * p.heads + head), query(p.query, row.index, head, d), key(p.key, row.index, head, d),
        value(p.value, row.index, head, d), query_MD(p.query_landmarks + index * m * d),
        key_MD(p.key_landmarks + index * m * d), inverse_T(p.inverse_T + index * m * m),
        gathered_MD(p.gathered + index * m * d), log_sums_M(p.log_sums + index * m), arena(floats_needed(p)) {
    for (float** x : {&first, &second}) *x = arena.take(BLOCK * d);
    for (float** x : {&scores, &grad_scores}) *x = arena.take(BLOCK * m);
    for (float** x : {&kernel_MM, &kernel_T}) *x = arena.take(m * m);
    for (float** x : {&mixed_MD, &scaled_query_MD, &scaled_query_T, &scaled_key_MD, &scaled_key_T})
      *x = arena.take(m * d);
    for (float** x : {&column_sums_M, &row_sums_M}) *x = arena.take(m);
  }

  // From Q̃ and K̃: their multiples and transposes, Ã, and the sums that Z₀ is scaled by.
  Norms prepare_landmarks() {
    for (int64_t i = 0; i < m * d; i += LANES) {
      store(scaled_query_MD + i, p.scale * load(query_MD + i));
      store(scaled_key_MD + i, p.scale * load(key_MD + i));
    }
    transpose(scaled_query_MD, m, d, scaled_query_T);
    transpose(scaled_key_MD, m, d, scaled_key_T);
    multiply(m, m, d, query_MD, d, 1, scaled_key_T, m, kernel_MM, m);
    softmax_of_rows(kernel_MM, m, m);
    transpose(kernel_MM, m, m, kernel_T);
    return norms_of(kernel_MM, m, column_sums_M, row_sums_M);
  }

  // X = Z Y
  void mix() { multiply(m, d, m, inverse_T, 1, m, gathered_MD, d, mixed_MD, d); }
};

// --- forward --------------------------------------------------------------------------------------

// Y = B̃ V
template <class Element>
void gather(Unit<Element>& u) {
  const int64_t m = u.m, d = u.d;
  RunningSoftmax softmax{u.column_sums_M, u.row_sums_M, u.arena.take(m), m};
  softmax.start();
  std::memset(u.gathered_MD, 0, 4 * m * d);
  for (int64_t start = 0; start < u.n; start += BLOCK) {
    const int64_t count = std::min(BLOCK, u.n - start);
    u.key.pack(u.row.tokens.data() + start, count, u.first);
    u.value.pack(u.row.tokens.data() + start, count, u.second);
    multiply(count, m, d, u.first, d, 1, u.scaled_query_T, m, u.scores, m);
    softmax.take(u.scores, count);
    scale_rows(u.gathered_MD, m, d, softmax.correction_M);
    multiply(m, d, count, u.scores, 1, m, u.second, d, u.gathered_MD, d, 1, 1);
  }
  for (int64_t i = 0; i < m; ++i) {
    u.log_sums_M[i] = softmax.largest_M[i] + std::log(softmax.total_M[i]);
    softmax.correction_M[i] = 1 / softmax.total_M[i];
  }
  scale_rows(u.gathered_MD, m, d, softmax.correction_M);
}

// out = F̃ X + convolution(V), by positions
template <class Element>
void spread(Unit<Element>& u) {
  const int64_t m = u.m, d = u.d;
  const Tokens<Element> out(u.p.out, u.row.index, u.head, d);
  Residual<Element> residual(u.arena, u.p, u.row.index, u.head, false);
  for_blocks(u.row, [&](const int32_t* tokens, int64_t count, int64_t span) {
    u.query.pack(tokens, count, u.first);
    multiply(count, m, d, u.first, d, 1, u.scaled_key_T, m, u.scores, m);
    softmax_of_rows(u.scores, count, m);
    multiply(count, d, m, u.scores, m, 1, u.mixed_MD, d, u.first, d);
    residual.add(u.value, tokens, count, span, u.first);
    for (int64_t i = 0; i < count; ++i) out.put(tokens[i], u.first + i * d);
  });
}

template <class Element>
void forward(const Problem& p, const Row& row, int64_t head) {
  Unit<Element> u(p, row, head);
  segment_means(u.query, row, u.m, u.first, u.query_MD);
  segment_means(u.key, row, u.m, u.first, u.key_MD);
  const Norms norms = u.prepare_landmarks();
  float *steps = u.arena.take(3 * u.m * u.m), *work = u.arena.take(u.m * u.m);
  iterate(u.kernel_MM, u.kernel_T, u.m, p.iterations, norms, false, steps, work, u.inverse_T);
  gather(u);
  u.mix();
  spread(u);
}

// --- backward: forward read from its end ----------------------------------------------------------

// out = F̃ X: gradients of X, of K̃ / √D, and of the queries as far as F̃ goes
template <class Element>
void spread_backward(Unit<Element>& u, float* grad_mixed_MD, float* grad_key_MD) {
  const int64_t m = u.m, d = u.d;
  const Tokens<Element> grad_out(u.p.grad_out, u.row.index, u.head, d),
      grad_query(u.p.grad_query, u.row.index, u.head, d);
  float* mixed_T = u.arena.take(m * d);
  transpose(u.mixed_MD, m, d, mixed_T);
  std::memset(grad_mixed_MD, 0, 4 * m * d);
  std::memset(grad_key_MD, 0, 4 * m * d);
  for (int64_t start = 0; start < u.n; start += BLOCK) {
    const int64_t count = std::min(BLOCK, u.n - start);
    const int32_t* tokens = u.row.tokens.data() + start;
    u.query.pack(tokens, count, u.first);
    grad_out.pack(tokens, count, u.second);
    multiply(count, m, d, u.first, d, 1, u.scaled_key_T, m, u.scores, m);
    softmax_of_rows(u.scores, count, m);  // F̃
    multiply(m, d, count, u.scores, 1, m, u.second, d, grad_mixed_MD, d, 1, 1);
    multiply(count, m, d, u.second, d, 1, mixed_T, m, u.grad_scores, m);
    softmax_of_rows_backward(u.grad_scores, u.scores, count, m);
    multiply(count, d, m, u.grad_scores, m, 1, u.scaled_key_MD, d, u.second, d);
    multiply(m, d, count, u.grad_scores, 1, m, u.first, d, grad_key_MD, d, 1, 1);
    for (int64_t i = 0; i < count; ++i) grad_query.put(tokens[i], u.second + i * d);
  }
}

// Z ≈ Ã⁺, Ã = softmax(Q̃ K̃ᵀ/√D): gradients of Q̃ / √D (set) and of K̃ (added to). `grad_log_sums_M`, or null,
// are those of the logarithms of the softmax's sums.
template <class Element>
void inverse_backward(Unit<Element>& u, Norms norms, float* grad_inverse, const float* grad_log_sums_M,
                      float* grad_query_MD, float* grad_key_MD) {
  const int64_t m = u.m, d = u.d;
  float *grad_kernel = u.arena.take(m * m), *work = u.arena.take(4 * m * m);
  float* steps = u.arena.take(3 * u.p.iterations * m * m);
  iterate(u.kernel_MM, u.kernel_T, m, u.p.iterations, norms, true, steps, work, grad_kernel);
  iterate_backward(grad_inverse, u.kernel_MM, u.kernel_T, m, u.p.iterations, norms, u.column_sums_M,
                   u.row_sums_M, steps, work, grad_kernel);
  softmax_of_rows_backward(grad_kernel, u.kernel_MM, m, m);
  for (int64_t i = 0; grad_log_sums_M && i < m; ++i)
    for (int64_t j = i * m; j < (i + 1) * m; j += LANES)
      store(grad_kernel + j, load(grad_kernel + j) + grad_log_sums_M[i] * load(u.kernel_MM + j));
  multiply(m, d, m, grad_kernel, m, 1, u.key_MD, d, grad_query_MD, d);
  multiply(m, d, m, grad_kernel, 1, m, u.scaled_query_MD, d, grad_key_MD, d, 1, 1);
}

// X = Z Y: gradients of Q̃ / √D (set) and of K̃ (added to)
template <class Element>
void mix_backward(Unit<Element>& u, Norms norms, const float* grad_mixed_MD, float* grad_query_MD,
                  float* grad_key_MD) {
  const int64_t m = u.m, d = u.d;
  float *gathered_T = u.arena.take(m * d), *grad_inverse = u.arena.take(m * m);
  transpose(u.gathered_MD, m, d, gathered_T);
  multiply(m, m, d, grad_mixed_MD, d, 1, gathered_T, m, grad_inverse, m);
  inverse_backward(u, norms, grad_inverse, nullptr, grad_query_MD, grad_key_MD);
}

// x[i] += (gradient of the mean that token i, counted from `taken`, is part of) / (size of its segment)
inline void add_to_segments(const float* grad_means_MD, int64_t taken, int64_t count, int64_t n, int64_t m,
                            int64_t d, float factor, float* x) {
  for (int64_t i = taken; i < taken + count; ++i, x += d) {
    const int64_t s = segment_of(i, n, m);
    const float share = factor / float(n / m + (s < n % m));
    for (int64_t c = 0; c < d; c += LANES)
      store(x + c, load(x + c) + share * load(grad_means_MD + s * d + c));
  }
}

// Y = B̃ V, and the convolution: gradients of keys and values, and of Q̃ / √D (added to)
template <class Element>
void gather_backward(Unit<Element>& u, const float* grad_gathered_MD, const float* grad_key_MD,
                     float* grad_query_MD) {
  const int64_t m = u.m, d = u.d;
  const Tokens<Element> grad_out(u.p.grad_out, u.row.index, u.head, d),
      grad_key(u.p.grad_key, u.row.index, u.head, d), grad_value(u.p.grad_value, u.row.index, u.head, d);
  float *grad_gathered_T = u.arena.take(m * d), *delta_M = u.arena.take(m);
  Residual<Element> residual(u.arena, u.p, u.row.index, u.head, true);
  transpose(grad_gathered_MD, m, d, grad_gathered_T);
  for (int64_t i = 0; i < m; ++i) {  // Σ_n B̃ ∘ grad_B̃, which softmax's backward subtracts, is Y · grad_Y
    vec total = {};
    for (int64_t c = i * d; c < (i + 1) * d; c += LANES)
      total += load(u.gathered_MD + c) * load(grad_gathered_MD + c);
    delta_M[i] = sum_of(total);
  }
  int64_t taken = 0;
  for_blocks(u.row, [&](const int32_t* tokens, int64_t count, int64_t span) {
    u.key.pack(tokens, count, u.first);
    u.value.pack(tokens, count, u.second);
    multiply(count, m, d, u.first, d, 1, u.scaled_query_T, m, u.scores, m);
    multiply(count, m, d, u.second, d, 1, grad_gathered_T, m, u.grad_scores, m);
    for (int64_t j = 0; j < m; j += LANES) {
      const vec log_sum = load(u.log_sums_M + j), delta = load(delta_M + j);
      for (int64_t i = j; i < count * m; i += m) {
        const vec factor = exponential(load(u.scores + i) - log_sum);  // B̃ᵀ
        store(u.scores + i, factor);
        store(u.grad_scores + i, factor * (load(u.grad_scores + i) - delta));
      }
    }
    multiply(count, d, m, u.scores, m, 1, grad_gathered_MD, d, u.second, d);
    multiply(m, d, count, u.grad_scores, 1, m, u.first, d, grad_query_MD, d, 1, 1);
    multiply(count, d, m, u.grad_scores, m, 1, u.scaled_query_MD, d, u.first, d);
    add_to_segments(grad_key_MD, taken, count, u.n, m, d, 1, u.first);
    residual.add_backward(u.value, grad_out, tokens, count, span, u.second);
    for (int64_t i = 0; i < count; ++i) {
      grad_key.put(tokens[i], u.first + i * d);
      grad_value.put(tokens[i], u.second + i * d);
    }
    taken += count;
  });
  residual.write_grad_weight();
}

// The queries' part through Q̃ is known last.
template <class Element>
void add_query_means(Unit<Element>& u, const float* grad_query_MD) {
  const int64_t m = u.m, d = u.d;
  const Tokens<Element> grad_query(u.p.grad_query, u.row.index, u.head, d);
  for (int64_t start = 0; start < u.n; start += BLOCK) {
    const int64_t count = std::min(BLOCK, u.n - start);
    const int32_t* tokens = u.row.tokens.data() + start;
    grad_query.pack(tokens, count, u.first);
    add_to_segments(grad_query_MD, start, count, u.n, m, d, u.p.scale, u.first);
    for (int64_t i = 0; i < count; ++i) grad_query.put(tokens[i], u.first + i * d);
  }
}

template <class Element>
void backward(const Problem& p, const Row& row, int64_t head) {
  Unit<Element> u(p, row, head);
  const int64_t m = u.m, d = u.d;
  float *grad_mixed_MD = u.arena.take(m * d), *grad_gathered_MD = u.arena.take(m * d);
  float *grad_query_MD = u.arena.take(m * d), *grad_key_MD = u.arena.take(m * d);
  const Norms norms = u.prepare_landmarks();
  u.mix();
  spread_backward(u, grad_mixed_MD, grad_key_MD);
  for (int64_t i = 0; i < m * d; i += LANES) store(grad_key_MD + i, p.scale * load(grad_key_MD + i));
  mix_backward(u, norms, grad_mixed_MD, grad_query_MD, grad_key_MD);
  multiply(m, d, m, u.inverse_T, m, 1, grad_mixed_MD, d, grad_gathered_MD, d);  // Zᵀ grad_X
  gather_backward(u, grad_gathered_MD, grad_key_MD, grad_query_MD);
  add_query_means(u, grad_query_MD);
}

}  // namespace nystrom

#include "neighbours.h"
#include "neighbours_backward.h"

namespace nystrom {

// --- all rows -------------------------------------------------------------------------------------

template <class Work>
void for_units(const Problem& p, std::initializer_list<Tensor> written, Work work) {
  for (const Tensor& x : written) ask_for_huge_pages(p, x);
  const std::vector<Row> rows = rows_of(p);
  const int64_t units = int64_t(rows.size()) * p.heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(p.threads))
  for (int64_t i = 0; i < units; ++i) work(rows[i / p.heads], i % p.heads);
}

inline bool is_exact(const Problem& p, const Row& row) {
  return row.size() <= std::max(p.landmarks, 2 * p.neighbours);
}

template <class Element>
void forward_all(const Problem& p) {
  for_units(p, {p.out}, [&](const Row& row, int64_t head) {
    if (is_exact(p, row)) exact_forward<Element>(p, row, head);
    else (p.neighbours ? near_forward<Element> : forward<Element>)(p, row, head);
  });
}

template <class Element>
void backward_all(const Problem& p) {
  for_units(p, {p.grad_query, p.grad_key, p.grad_value}, [&](const Row& row, int64_t head) {
    if (is_exact(p, row)) exact_backward<Element>(p, row, head);
    else (p.neighbours ? near_backward<Element> : backward<Element>)(p, row, head);
  });
}

}  // namespace nystrom

extern "C" {

void nystrom_forward(const nystrom::Problem* p) {
  (p->half ? nystrom::forward_all<nystrom::bf16> : nystrom::forward_all<float>)(*p);
}
void nystrom_backward(const nystrom::Problem* p) {
  (p->half ? nystrom::backward_all<nystrom::bf16> : nystrom::backward_all<float>)(*p);
}
int64_t problem_size() { return sizeof(nystrom::Problem); }  // so that native.py can tell that it agrees
}
