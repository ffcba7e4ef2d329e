// index_q: the indexer's queries as an fp8 cache's kernels take them (model spec 2.4).
//
//   r[t, h, :]   = hadamard(rope(q[t, h, :]))      RoPE on the first 64 coordinates, as the type says
//   s[t, h]      = scale of r[t, h, :]             kernels/e4m3_block.h
//   out[t, h, :] = e4m3(r[t, h, :] / s[t, h])
//   out_weights[t, h] = weights[t, h] * s[t, h] * H^-1/2 * 128^-1/2
//
// relu(a s) = a relu(s) for a > 0, so the scores of out with out_weights are those of q with weights.
#pragma once

#include <ATen/core/Tensor.h>

#include "indexcache/ops/index_cache.h"

namespace indexcache {

// q          [M, H, 128]  fp32 or bf16, contiguous, H >= 1
// weights    [M, H]       fp32, contiguous: the output of weights_proj
// cos_sin    [P, 64]      fp32, contiguous: of each position 32 cosines, then their sines
// positions  [M]          int64 in [0, P): checked on the CPU; on CUDA others give NaN
// amax_floor              2^-100 to 2^100
// A row with a NaN or an infinity after its rotation is NaN throughout, its s 1. fp32 arithmetic. No gradient.
IndexQueries index_q(const at::Tensor& q, const at::Tensor& weights, const at::Tensor& cos_sin,
                     const at::Tensor& positions, const IndexKeyType& type,
                     double amax_floor = kDefaultAmaxFloor);

}  // namespace indexcache
