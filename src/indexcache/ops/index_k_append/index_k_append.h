// index_k_append: new tokens' index keys into the pages of an fp8 cache (model spec 2.4).
//
//   r[t, :] = hadamard(rope(keys[t, :]))           RoPE on the first 64 coordinates, as the type says
//   s[t]    = scale of r[t, :]                     kernels/e4m3_block.h
//   page slots[t] / 64, key slots[t] mod 64: e4m3(r[t, :] / s[t]), s[t]
#pragma once

#include <ATen/core/Tensor.h>

#include "indexcache/ops/index_cache.h"

namespace indexcache {

// keys       [M, 128]  fp32 or bf16, contiguous: after their LayerNorm
// cos_sin    [P, 64]   fp32, contiguous: of each position 32 cosines, then their sines
// positions  [M]       int64 in [0, P): checked on the CPU; on CUDA others give NaN
// slots      [M]       int64: page * 64 + key of the page; below 0 the token is skipped; beyond the
//                      pages an error on the CPU, skipped on CUDA. A slot given twice holds one of
//                      the two, or of each a part.
// cache                written in place; its type says how
// amax_floor           2^-100 to 2^100
// A row with a NaN or an infinity after its rotation is NaN throughout, its s 1. fp32 arithmetic.
void index_k_append(const at::Tensor& keys, const at::Tensor& cos_sin, const at::Tensor& positions,
                    const at::Tensor& slots, const IndexKeyPages& cache,
                    double amax_floor = kDefaultAmaxFloor);

}  // namespace indexcache
