// What index_topk's driver asks of an instruction set: pack a query once, then score runs of keys.
#pragma once

#include <cstdint>

#include "indexcache/ops/index_topk/index_topk_params.h"

namespace indexcache {

// Packed queries against a run of keys: scores[j * score_stride + i] for query j and key i. Scores are
// written up to a multiple of kScoreGroup.
struct ScoreRun {
  const void* packed;
  std::int64_t queries, heads, dim;
  const void* keys;  // [count, D] in the kernel's key type, rows key_stride elements apart
  std::int64_t key_stride, count;
  void* scratch;
  float* scores;
  std::int64_t score_stride;
};

// Lanes are heads: a step multiplies one element of a key, broadcast, with that element of many
// heads, so that keys are read where they lie and only queries are packed. The dot products of a
// group of keys then pass relu and weights in registers and are summed over lanes. Where the heads
// do not fill two vectors, several queries are packed and scored together, a slot of lanes each.
//
// A score's rounding is a function of H and D alone: heads in vectors, d ascending (in pairs for
// bf16 instructions), vectors of heads ascending, lanes by a fixed tree. Where a key stands in a run
// or a query among others, and what stands beside them, change nothing.
struct ScoreKernel {
  // How many queries one pass may score; bytes of so many packed; bytes of score_keys' scratch.
  std::int64_t (*queries_per_pass)(std::int64_t heads);
  std::int64_t (*packed_bytes)(std::int64_t heads, std::int64_t dim);
  std::int64_t (*scratch_bytes)(std::int64_t dim);
  // q [queries, H, D] in the params' dtype, weights [queries, H].
  void (*pack_queries)(const void* q, const float* weights, std::int64_t queries,
                       std::int64_t heads, std::int64_t dim, void* packed);
  void (*score_keys)(const ScoreRun& run);
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
