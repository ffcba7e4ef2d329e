// index_overlap: how many entries two index sets of the same queries have in common.
//
//   out[t] = |a[t] n b[t]|          entries < 0 are padding and never counted
//
// Divided by k and averaged over queries this is the cross-layer overlap of the paper's appendix A.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

// a [M, k_a], b [M, k_b]: int32, contiguous, on the CPU or a device (computed on the CPU); each row
// strictly ascending, then -1 (what index_topk gives). M, k_a, k_b may be 0. Rows that are not
// ascending give an unspecified count between 0 and min(k_a, k_b).
// Returns [M] int32 on the CPU.
at::Tensor index_overlap(const at::Tensor& a, const at::Tensor& b);

}  // namespace indexcache
