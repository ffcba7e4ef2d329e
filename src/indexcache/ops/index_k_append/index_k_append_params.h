// index_k_append: the arguments shared by the reference and the kernels. Torch-free. Semantics in
// index_k_append.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/kernels/index_row.h"

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace indexcache {

struct IndexKAppendParams {
  std::int64_t num_tokens = 0;  // M
  IndexRowDType dtype = IndexRowDType::kFloat32;
  const void* keys = nullptr;  // [M, 128], on CUDA a multiple of 16
  RopeRows rope;
  const std::int64_t* slots = nullptr;  // [M]; outside [0, 64 num_pages) skipped
  IndexKeyType type;
  float amax_floor = kDefaultAmaxFloor;
  void* pages = nullptr;  // a multiple of 16
  std::int64_t num_pages = 0;
  std::int64_t page_stride = 0;  // bytes, a multiple of 16, at least kIndexPageBytes
};

// The rotated rows before they are rounded, in double: [M, 128].
void index_k_append_ref(const IndexKAppendParams& params, double* rows);
void index_k_append_cpu(const IndexKAppendParams& params, const Parallel& parallel);
// All pointers are the device's. Reads nothing back: it can be captured in a graph.
void index_k_append_cuda(const IndexKAppendParams& params, CUstream_st* stream);

}  // namespace indexcache
