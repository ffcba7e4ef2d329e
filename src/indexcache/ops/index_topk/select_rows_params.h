// select_rows: index_topk's selection where the scores of a chunk of queries are in memory.
// Torch-free. The order is index_topk.h's: higher score first, then lower index; -0 equals +0, NaN
// ranks below -inf.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace indexcache {

struct SelectRowsParams {
  std::int64_t num_queries = 0;         // M, at most 2^31 - 1
  std::int64_t num_keys = 0;            // N, at most 2^31 - 1
  std::int64_t top_k = 0;               // k
  const float* scores = nullptr;        // [M, N]; outside the ranges anything
  const std::int32_t* start = nullptr;  // [M]
  const std::int32_t* end = nullptr;    // [M]
  std::int32_t* out = nullptr;          // [M, k]: ascending, minus start, -1 padded
};

// All pointers are the device's. Reads each row of scores four times; a block of threads works on
// one row. Nothing is allocated.
void select_rows_cuda(const SelectRowsParams& params, CUstream_st* stream);

}  // namespace indexcache
