// index_q: the arguments shared by the reference and the kernels. Torch-free. Semantics in index_q.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"
#include "indexcache/kernels/index_row.h"

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace indexcache {

struct IndexQParams {
  std::int64_t num_tokens = 0;  // M
  std::int64_t num_heads = 0;   // H
  IndexRowDType dtype = IndexRowDType::kFloat32;
  const void* q = nullptr;         // [M, H, 128], on CUDA a multiple of 16
  const float* weights = nullptr;  // [M, H]
  RopeRows rope;
  IndexKeyType type;
  float amax_floor = kDefaultAmaxFloor;
  float factor = 1;              // H^-1/2 128^-1/2
  std::uint8_t* out = nullptr;   // [M, H, 128], on CUDA a multiple of 8
  float* out_weights = nullptr;  // [M, H]
};

// The rotated rows before they are rounded, in double: [M, H, 128].
void index_q_ref(const IndexQParams& params, double* rows);
// Whole tokens a thread.
void index_q_cpu(const IndexQParams& params, const Parallel& parallel);
// All pointers are the device's. Reads nothing back: it can be captured in a graph.
void index_q_cuda(const IndexQParams& params, CUstream_st* stream);

}  // namespace indexcache
