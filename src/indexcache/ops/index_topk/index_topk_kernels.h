// What index_topk's driver asks of an instruction set: pack a query once, then score runs of keys.
#pragma once

#include <cstdint>

#include "indexcache/ops/index_topk/index_topk_params.h"

namespace indexcache {

// Lanes are heads: a step multiplies one element of a key, broadcast, with that element of many
// heads, so that keys are read where they lie and only queries are packed. The dot products of a
// group of keys then pass relu and weights in registers and are summed over lanes.
//
// A score's rounding is a function of H and D alone: heads in vectors, d ascending (in pairs for
// bf16 instructions), vectors of heads ascending, lanes by a fixed tree. Where a key stands in a
// run and what stands beside it change nothing.
struct ScoreKernel {
  // Bytes of a packed query, and of the scratch that score_keys wants.
  std::int64_t (*packed_bytes)(std::int64_t heads, std::int64_t dim);
  std::int64_t (*scratch_bytes)(std::int64_t dim);
  // q [H, D] in the params' dtype, weights [H].
  void (*pack_query)(const void* q, const float* weights, std::int64_t heads, std::int64_t dim,
                     void* packed);
  // scores[i] for the `count` keys at `keys`, key_stride elements apart, in the kernel's key type.
  // Writes up to a multiple of kScoreGroup of them.
  void (*score_keys)(const void* packed, std::int64_t heads, std::int64_t dim, const void* keys,
                     std::int64_t key_stride, std::int64_t count, void* scratch, float* scores);
  // Null where score_keys reads the params' dtype itself; else widens bf16 keys to the fp32 rows
  // [count, D] that score_keys reads.
  void (*widen_keys)(const void* keys, std::int64_t key_stride, std::int64_t count,
                     std::int64_t dim, float* out);
};

// Keys reduced over lanes together: a multiple of every kernel's register tile and lane count.
constexpr std::int64_t kScoreGroup = 48;

// Highway, for the CPU's best compiled target.
ScoreKernel highway_score_kernel(IndexDType dtype);
// vdpbf16ps; packed_bytes is null where the compiler or the CPU lacks it.
ScoreKernel avx512_bf16_score_kernel();

}  // namespace indexcache
