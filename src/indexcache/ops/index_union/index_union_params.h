// index_union: the arguments shared by the reference and the kernels. Torch-free. Semantics in index_union.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"
#include "indexcache/kernels/union_entry.h"

namespace indexcache {

struct IndexUnionParams {
  std::int64_t num_groups = 0;
  const std::int32_t* group_begin =
      nullptr;             // [num_groups + 1] rows of indices; at most kGroupQueries a group
  std::int64_t top_k = 0;  // k
  const std::int32_t* indices = nullptr;  // [M, k]
  std::int64_t entry_stride = 0;          // entries between groups, at least kGroupQueries * k
  std::int32_t* entries = nullptr;        // [num_groups, entry_stride]
  std::int32_t* counts = nullptr;         // [num_groups]
};

// The definition: each id that occurs, in order, looked for in every set of the group.
void index_union_ref(const IndexUnionParams& params);
// A merge of the group's rows.
void index_union_cpu(const IndexUnionParams& params, const Parallel& parallel);

// Largest k of the kernel: the lists of a group lie in shared memory.
constexpr std::int64_t kIndexUnionCudaMaxTopK = 8192;
// Queued on the stream (a cudaStream_t), graph safe. All pointers are the device's. Returns 0 or the cudaError_t.
int index_union_cuda(const IndexUnionParams& params, void* stream);

}  // namespace indexcache
