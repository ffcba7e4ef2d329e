// sparse_mla: the arguments shared by the reference and the kernels. Torch-free. Semantics in
// sparse_mla.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace indexcache {

enum class SparseMlaDType { kFloat32, kBFloat16 };

struct SparseMlaParams {
  std::int64_t num_queries = 0;  // M
  std::int64_t num_heads = 0;    // h
  std::int64_t dim = 0;          // latent + RoPE
  std::int64_t value_dim = 0;    // latent
  std::int64_t num_keys = 0;     // N
  std::int64_t top_k = 0;        // k, entries a row
  float softmax_scale = 1.0f;
  SparseMlaDType dtype = SparseMlaDType::kFloat32;
  const void* q = nullptr;   // [M, h, dim]
  const void* kv = nullptr;  // [N, dim], rows kv_stride elements apart
  std::int64_t kv_stride = 0;
  const std::int32_t* indices = nullptr;  // [M, k], below N
  void* out = nullptr;   // [M, h, value_dim], dtype of q; not read by the reference
  float* lse = nullptr;  // [M, h]
};

// The definition as scalar loops with double accumulators; results in double, [M, h, value_dim] and
// [M, h].
void sparse_mla_ref(const SparseMlaParams& params, double* out, double* lse);
// Highway kernels, chosen for this CPU at run time.
void sparse_mla_cpu(const SparseMlaParams& params, const Parallel& parallel);
// On CUDA cores, all pointers the device's. At most 2^31 - 1 queries.
void sparse_mla_simt_cuda(const SparseMlaParams& params, CUstream_st* stream);

}  // namespace indexcache
