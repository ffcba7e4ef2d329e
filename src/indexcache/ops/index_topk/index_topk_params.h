// index_topk: the arguments shared by the reference and the kernels. Torch-free. Semantics in
// index_topk.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"

namespace indexcache {

enum class IndexDType { kFloat32, kBFloat16 };

struct IndexTopkParams {
  std::int64_t num_queries = 0;  // M
  std::int64_t num_heads = 0;    // H
  std::int64_t head_dim = 0;     // D
  std::int64_t num_keys = 0;     // N
  std::int64_t top_k = 0;        // k
  IndexDType dtype = IndexDType::kFloat32;
  const void* q = nullptr;     // [M, H, D]
  const void* keys = nullptr;  // [N, D], rows key_stride elements apart
  std::int64_t key_stride = 0;
  const float* weights = nullptr;       // [M, H]
  const std::int32_t* start = nullptr;  // [M]
  const std::int32_t* end = nullptr;    // [M]
  std::int32_t* out = nullptr;          // [M, k]
};

// The definition as scalar loops with double accumulators.
void index_topk_ref(const IndexTopkParams& params);
// Its scores, [M, N], -inf outside the ranges.
void index_scores_ref(const IndexTopkParams& params, double* scores);

// Highway kernels, chosen for this CPU at run time.
void index_topk_cpu(const IndexTopkParams& params, const Parallel& parallel);
// The very scores index_topk_cpu selects by, [M, N], -inf outside the ranges: for tests.
void index_scores_cpu(const IndexTopkParams& params, float* scores);

}  // namespace indexcache
