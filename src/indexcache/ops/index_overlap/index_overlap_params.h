// index_overlap: the arguments shared by the reference and the CPU loop. Torch-free. Semantics in
// index_overlap.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"

namespace indexcache {

struct IndexOverlapParams {
  std::int64_t num_queries = 0;  // M
  std::int64_t k_a = 0, k_b = 0;
  const std::int32_t* a = nullptr;  // [M, k_a]
  const std::int32_t* b = nullptr;  // [M, k_b]
  std::int32_t* out = nullptr;      // [M]
};

// The definition: every entry of a is looked for in b.
void index_overlap_ref(const IndexOverlapParams& params);
// A merge of the two ascending rows, without branches.
void index_overlap_cpu(const IndexOverlapParams& params, const Parallel& parallel);

}  // namespace indexcache
