// What the caller hands over, and how a row's real tokens are read and written.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "vectors.h"

namespace nystrom {

constexpr int64_t MULTIPLE = 16;  // of M and D, see native.py
constexpr int64_t BLOCK = 96;  // positions packed at a time: a multiple of TILE_ROWS

struct bf16 {
  uint16_t bits;
};

inline void read(const float* from, float* to, int64_t count) { std::memcpy(to, from, 4 * count); }
inline void write(const float* from, float* to, int64_t count) { std::memcpy(to, from, 4 * count); }
inline void read(const bf16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = uint32_t(from[i].bits) << 16;
    std::memcpy(to + i, &bits, 4);
  }
}
inline void write(const float* from, bf16* to, int64_t count) {  // to the nearest, ties to even
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    to[i].bits = nan ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}


extern "C" {

struct Tensor {  // (B, H, N, D), elements of a token side by side; strides in elements
  void* data;
  int64_t row, head, position;
};

struct Problem {
  int64_t rows, heads, positions, width, landmarks, kernel, iterations, threads;
  int64_t neighbours, salient;  // w, or 0 for landmarks alone; S, at most N
  int64_t half;                // 1: tensors are bfloat16, else float32
  float scale;                 // 1 / √D
  const uint8_t* padding;      // (B, N), 1 at padding, or null
  const float* conv_weight;    // (H, K), or null where K is 0
  Tensor query, key, value, out;
  float *query_landmarks, *key_landmarks;  // kept, (B, H, M, D): Q̃, K̃
  float *inverse_T, *gathered;             // kept, (B, H, M, M): Zᵀ; (B, H, M, D): Y = B̃ V
  float *log_sums;                         // kept, (B, H, M): of each row of B̃
  float *near_log_sums, *far_log_sums;     // kept with neighbours, (B, H, N) by rank: see neighbours.h
  int32_t* salient_ranks;                  // kept with neighbours, (B, H, S), ascending
  Tensor grad_out, grad_query, grad_key, grad_value;
  float* grad_conv_weight;  // (B, H, K)
};

}  // extern "C"

// A row's real tokens, in order.
struct Row {
  int64_t index;
  std::vector<int32_t> tokens;
  int64_t size() const { return int64_t(tokens.size()); }
};

inline std::vector<Row> rows_of(const Problem& p) {
  std::vector<Row> rows;
  for (int64_t index = 0; index < p.rows; ++index) {
    Row row{index, {}};
    for (int64_t i = 0; i < p.positions; ++i)
      if (p.padding == nullptr || !p.padding[index * p.positions + i]) row.tokens.push_back(int32_t(i));
    if (row.size()) rows.push_back(std::move(row));
  }
  return rows;
}

// One head of one row of a tensor.
template <class Element>
struct Tokens {
  Element* data;
  int64_t stride, width;

  Tokens(const Tensor& x, int64_t row, int64_t head, int64_t width)
      : data(static_cast<Element*>(x.data) + row * x.row + head * x.head), stride(x.position), width(width) {}

  void get(int64_t position, float* to) const { read(data + position * stride, to, width); }
  void put(int64_t position, const float* from) const { write(from, data + position * stride, width); }

  // `count` tokens side by side.
  void pack(const int32_t* tokens, int64_t count, float* to) const {
    for (int64_t i = 0; i < count; ++i) get(tokens[i], to + i * width);
  }
  // Positions `first` to `last`, zeros at padding and outside the sequence.
  void window(const Problem& p, int64_t row, int64_t first, int64_t last, float* to) const {
    const uint8_t* padding = p.padding ? p.padding + row * p.positions : nullptr;
    for (int64_t i = first; i < last; ++i, to += width) {
      if (i < 0 || i >= p.positions || (padding && padding[i])) std::memset(to, 0, 4 * width);
      else get(i, to);
    }
  }
};

// Fresh memory for a long sequence's results costs a page fault for every 4 KB written, which took longer
// than the arithmetic in a trial at 16,384 tokens; huge pages, where the system grants them, cost one for
// every 2 MB. Below the size, malloc hands out memory that has been written to before.
inline void ask_for_huge_pages(const Problem& p, const Tensor& written) {
  constexpr uintptr_t PAGE = 1 << 21, WORTH_IT = 1 << 25;
  const uintptr_t bytes = uintptr_t(p.rows * p.heads * p.positions * p.width) * (p.half ? 2 : 4);
  const uintptr_t start = (reinterpret_cast<uintptr_t>(written.data) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(written.data) + bytes) / PAGE * PAGE;
  if (bytes >= WORTH_IT && end > start) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
}

// Memory of one thread, kept from call to call: fresh pages cost more than what is computed in them.
class Arena {
 public:
  explicit Arena(int64_t floats) {
    if (capacity_ < floats) {
      memory_.reset(new float[floats + 16]);
      capacity_ = floats;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    next_ = memory_.get() + ((64 - address % 64) % 64) / 4;
  }
  float* take(int64_t floats) {
    float* taken = next_;
    next_ += (floats + 15) / 16 * 16;
    if (next_ > memory_.get() + capacity_ + 16) std::abort();  // floats_needed is wrong
    return taken;
  }

 private:
  static inline thread_local std::unique_ptr<float[]> memory_;
  static inline thread_local int64_t capacity_ = 0;
  float* next_;
};

inline int64_t whole_vectors(int64_t columns) { return (columns + MULTIPLE - 1) / MULTIPLE * MULTIPLE; }

// What one unit takes at most, see nystrom.cpp.
inline int64_t floats_needed(const Problem& p) {
  const int64_t m = p.landmarks, d = p.width, w = p.neighbours;
  const int64_t blocks = BLOCK * (3 * d + 2 * m) + 2 * (BLOCK + p.kernel) * d;
  const int64_t matrices = (3 * p.iterations + 8) * m * m + 12 * m * d;
  const int64_t parts = ((p.positions + w) / std::max<int64_t>(w, 1) + 2) * (m * d + 2 * m);
  const int64_t panel = whole_vectors(p.salient), weights = p.salient > 1 ? (p.positions + w) * (m + 1) : 0;
  const int64_t salient = 6 * panel * d + 2 * w * panel + weights;
  const int64_t near = w ? parts + salient + 32 * w * d + 8 * w * m + 16 * w * w + 8 * m * d + 4 * m * m + 32 * (w + m) + 4 * d + 64 * 16 : 0;
  return near + blocks + matrices + 8 * m + (p.kernel + 1) * (LANES + 1) + 2 * TILE_ROWS + 40 * 16;  // 16: alignment
}

// Segment s of n tokens: the first n mod M are longer by one token.
inline int64_t segment_start(int64_t s, int64_t n, int64_t m) { return s * (n / m) + std::min(s, n % m); }
inline int64_t segment_of(int64_t token, int64_t n, int64_t m) {
  const int64_t size = n / m, border = n % m * (size + 1);
  return token < border ? token / (size + 1) : n % m + (token - border) / size;
}

template <class Element>
void segment_means(const Tokens<Element>& x, const Row& row, int64_t m, float* token, float* means_MD) {
  const int64_t n = row.size(), d = x.width;
  for (int64_t s = 0; s < m; ++s) {
    float* mean = means_MD + s * d;
    const int64_t first = segment_start(s, n, m), last = segment_start(s + 1, n, m);
    std::memset(mean, 0, 4 * d);
    for (int64_t i = first; i < last; ++i) {
      x.get(row.tokens[i], token);
      for (int64_t c = 0; c < d; c += LANES) store(mean + c, load(mean + c) + load(token + c));
    }
    const float share = 1.0f / float(last - first);
    for (int64_t c = 0; c < d; c += LANES) store(mean + c, share * load(mean + c));
  }
}

}  // namespace nystrom
