// The online softmax of one tile in registers, and what keeps values that are not finite from
// queries that did not select them.
#pragma once

#include "indexcache/kernels/shared_access.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_tile.cuh"

namespace indexcache::device {

// A thread of a warpgroup has two rows of the tile's 64 and, in 8 columns, every pair of columns 8
// j + 2 (thread % 4).
__device__ inline int row_of(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + 8 * i;
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What a warpgroup has read may be overwritten.
__device__ inline void release(std::uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

// Weights are powers of 2 against an origin, the largest exponent when it was set. It moves only where
// exponents exceed it by so much: a sum of 2^21 weights of 2^8 is nothing to a float, and to move it
// is to multiply all of out.
constexpr float kSlack = 8;

struct RowState {
  float origin[2] = {-INFINITY, -INFINITY};  // in exponents: softmax_scale * log2(e) * q . kv
  float sum[2] = {0, 0};                     // this thread's columns
  bool any[2] = {false, false};
};

// Which of the group's queries the thread's rows belong to; kGroupQueries: none, their masks are
// empty.
struct RowQueries {
  int query[2];
};
__device__ inline RowQueries row_queries(const Work& w, int heads, int thread) {
  RowQueries r;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of(thread, i), at = w.row_in_group + row;
    r.query[i] = row < w.rows ? (at >= heads) + (at >= 2 * heads) : kGroupQueries;
  }
  return r;
}

// Which of the thread's columns its rows selected: bit 16 i + 2 j + e for s[4 j + 2 i + e].
__device__ inline std::uint32_t selected_columns(const std::uint32_t (&masks)[4][2],
                                                 const RowQueries& rows, RowState& state,
                                                 int thread) {
  const int shift = thread % 4 / 2 * 16 + thread % 2 * 2;  // selects(), for the thread's columns
  std::uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t low = masks[rows.query[i]][0], high = masks[rows.query[i]][1];
    state.any[i] |= (low | high) != 0;
    bits |= ((low >> shift & 0x3333) | (high >> shift & 0x3333) << 2) << 16 * i;
  }
  return bits;
}

// Logits of unselected keys to -inf. Written so that the compiler makes predicates of several bits by
// one instruction.
__device__ inline void mask_logits(float (&s)[32], std::uint32_t selected) {
  if (!__any_sync(0xFFFFFFFF, selected != 0xFFFFFFFF)) return;
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) {
    float& logit = s[4 * (bit % 16 / 2) + 2 * (bit / 16) + bit % 2];
    logit = selected & 1u << bit ? logit : -INFINITY;
  }
}

// What is subtracted: with no key yet all weights are exp2(-inf).
__device__ inline float finite_origin(float origin) { return origin == -INFINITY ? 0 : origin; }

// Moves a row's origin; the factor of what was summed against the old one, 1 where it stays.
__device__ inline float move_origin(float origin, int i, RowState& state) {
  const float factor = origin == state.origin[i] ? 1 : exp2_fast(state.origin[i] - origin);
  state.origin[i] = origin;
  return factor;
}

// Where a row's logits ask for it.
__device__ inline float move_origin_for(const float (&s)[32], int i, float scale, RowState& state) {
  float max = -INFINITY;
#pragma unroll
  for (int j = 0; j < 8; ++j) max = fmaxf(max, fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
  max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFF, max, 1));
  max = scale * fmaxf(max, __shfl_xor_sync(0xFFFFFFFF, max, 2));
  return move_origin(max > state.origin[i] + kSlack ? max : state.origin[i], i, state);
}

// Turns one row's logits into weights; `rescale` is the factor of the sum so far.
__device__ inline void weigh_row(float (&s)[32], int i, float scale, float rescale,
                                 RowState& state) {
  const float origin = finite_origin(state.origin[i]);
  float sums[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& weight = s[4 * j + 2 * i + e];
      weight = exp2_fast(fmaf(weight, scale, -origin));
      sums[e] += weight;
    }
  }
  state.sum[i] = fmaf(state.sum[i], rescale, sums[0] + sums[1]);
}

// The weights as the register operand of the product with values.
__device__ inline void pack_weights(const float (&s)[32], std::uint32_t (&weights)[16]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      weights[2 * j + i] = pack_bf16(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]);
  }
}

// In as few instructions as there are: each queues behind the gather's copies.
__device__ inline void store_weights(unsigned char* to, const std::uint32_t (&weights)[16],
                                     int thread) {
  const int row = thread / 32 * 16 + thread % 16;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    store_matrices(shared_address(to) + swizzled_offset(row, j + thread % 32 / 16),
                   weights + 2 * j);
  }
}

__device__ inline bool changes(const float (&factor)[2]) {
  return __any_sync(0xFFFFFFFF, factor[0] != 1 || factor[1] != 1);
}
__device__ inline void rescale_values(float (&o)[128], const float (&factor)[2]) {
  if (!changes(factor)) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] *= factor[i / 2 % 2];
}

// A row's logits hold a NaN or inf, selected or not, where the latent does (0 times either is NaN).
// A sum of products with 0 tells.
__device__ inline bool holds_non_finite(const float (&s)[32]) {
  float zeros[4] = {};
#pragma unroll
  for (int i = 0; i < 32; ++i) zeros[i % 4] = fmaf(s[i], 0.0f, zeros[i % 4]);
  return !((zeros[0] + zeros[1]) + (zeros[2] + zeros[3]) == 0);
}

__device__ inline bool non_finite_low(std::uint32_t pair) { return (pair & 0x7F80u) == 0x7F80u; }
__device__ inline bool non_finite_high(std::uint32_t pair) {
  return (pair & 0x7F800000u) == 0x7F800000u;
}

// Whether a tile's values hold any, for both warpgroups to see: the other reads it after it has
// waited for the weights. Logits may have overflowed in some warps only; the values themselves are
// the same for all.
__device__ inline bool seek_poison(const float (&s)[32], Shared& shared, int tile, int thread) {
  bool found = false;
  if (__any_sync(0xFFFFFFFF, holds_non_finite(s))) {
    const auto* pairs = reinterpret_cast<const std::uint32_t*>(shared.kv[tile]);
    for (int at = thread % 32; at < kLatentBlocks * kBlockBytes / 4; at += 32)
      found |= non_finite_low(pairs[at]) || non_finite_high(pairs[at]);
    found = __any_sync(0xFFFFFFFF, found);
  }
  if (thread == 0) shared.poisoned[tile] = found;
  return found;
}

// The rare tile with a NaN or inf among its values, `half` of the columns by one warpgroup. In the
// product its weight of 0 would spoil rows that did not select it, so it is taken out: where a row
// did select it, that element of out is NaN (the logit is NaN or +-inf, so the weight is NaN or 0),
// and in shared memory it becomes 0.
__device__ inline void take_out_non_finite(float (&o)[128], unsigned char* values,
                                           const std::uint32_t (&masks)[4][2],
                                           const RowQueries& rows, int barrier, int thread) {
#pragma unroll 1
  for (int key = 0; key < kTileKeys; ++key) {
    bool selected[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) selected[i] = selects(masks[rows.query[i]], key);
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      const std::uint32_t pair = *reinterpret_cast<const std::uint32_t*>(
          values + j / 8 * kBlockBytes + swizzled_offset(key, j % 8) + 4 * (thread % 4));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (selected[i] && non_finite_low(pair)) o[4 * j + 2 * i] = NAN;
        if (selected[i] && non_finite_high(pair)) o[4 * j + 2 * i + 1] = NAN;
      }
    }
  }
  barrier_sync(barrier, kWarpgroup);  // all have read
  for (int at = thread; at < 4 * kBlockBytes / 4; at += kWarpgroup) {
    auto& pair = reinterpret_cast<std::uint32_t*>(values)[at];
    if (non_finite_low(pair)) pair &= 0xFFFF0000u;
    if (non_finite_high(pair)) pair &= 0x0000FFFFu;
  }
  fence_for_wgmma();
  barrier_sync(barrier, kWarpgroup);
}

}  // namespace indexcache::device
