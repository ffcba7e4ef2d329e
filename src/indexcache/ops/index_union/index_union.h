// index_union: the index sets of neighbouring queries as one list, each key once, with a mask that says whose it is.
//
//   entries[g] = ascending over the union of indices[t], t in group g:  id | mask << 29
//   bit j of mask: the group's query j, row group_begin[g] + j of indices, selected id
//
// sparse_mla reads each key of such a list once for all queries of the group. The list is built once per index set and serves
// every layer that reads the set.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

struct IndexUnion {
  at::Tensor entries;  // [G, 3 k] int32; what lies beyond a group's count is unspecified
  at::Tensor counts;   // [G] int32
};

// indices      [M, k]   int32, contiguous, CPU or CUDA; each row strictly ascending, then -1 (what index_topk gives); ids below
//                       2^29 (checked on the CPU). Rows that are not ascending give unspecified entries.
// group_begin  [G + 1]  int32, contiguous, same device: group g holds the rows [group_begin[g], group_begin[g + 1]), 1 to 3 of
//                       them (query_groups in kernels/query_groups.h makes them); checked on the CPU.
// On CUDA k is at most 8192; nothing is read back, so it can be captured in a graph. M, G and k may be 0; an empty
// group's count is 0.
IndexUnion index_union(const at::Tensor& indices, const at::Tensor& group_begin);

}  // namespace indexcache
