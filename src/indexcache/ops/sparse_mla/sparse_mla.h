// sparse_mla: absorbed multi-head latent attention over an index set (model spec 2.3, absorbed
// form).
//
//   logit[t, h, s] = softmax_scale * q[t, h, :] . kv[s, :]
//   out[t, h, :]   = sum over s in indices[t] of softmax_s(logit)[t, h, s] * kv[s, :value_dim]
//   lse[t, h]      = log sum_s exp(logit[t, h, s])
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace indexcache {

struct SparseMlaResult {
  at::Tensor out;  // [M, h, value_dim], dtype of q
  at::Tensor lse;  // [M, h] fp32, natural logarithm
};

// q          [M, h, dim]  fp32 or bf16, contiguous; per head the absorbed latent query, then the
//                         RoPE part
// kv         [N, dim]     the dtype of q, rows contiguous (any row stride); per key the latent, then
//                         the RoPE key
// indices    [M, k]       int32 rows of kv, contiguous, any order; entries < 0 anywhere are skipped;
//                         >= N is an error on the CPU, skipped on CUDA, where nothing is read back.
//                         Duplicates count as often as they occur.
// value_dim  1..dim
// An empty row gives out 0 and lse -inf. A row of kv that a query did not select never changes its
// output bits. In the kernels the accumulation order depends on the row's own indices only: chunking
// and company change nothing. No gradient: inference only.
SparseMlaResult sparse_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& indices,
                           std::int64_t value_dim, double softmax_scale);

// sparse_mla by plain tensor algebra: what devices without a kernel of their own run. Same contract,
// arguments taken as valid. Works on as many queries at a time as gather chunk_floats elements of kv
// (512 MiB), one at least.
SparseMlaResult sparse_mla_torch(const at::Tensor& q, const at::Tensor& kv,
                                 const at::Tensor& indices, std::int64_t value_dim,
                                 double softmax_scale,
                                 std::int64_t chunk_floats = std::int64_t{1} << 27);

}  // namespace indexcache
