// index_topk: the lightning indexer's scores and their top-k selection in one op (model spec 2.4).
//
//   I[t, s] = sum_h weights[t, h] * relu(q[t, h, :] . keys[s, :])
//   out[t]  = the k keys s in [start[t], end[t]) with the largest I[t, s], ascending, minus
//   start[t]
//
// The factors n_I^-1/2 and d_I^-1/2 are folded into `weights` by the caller. relu(NaN) is NaN.
// Order: higher score first, then lower index; -0 equals +0, NaN ranks below -inf. Rows with fewer
// than k keys hold all of them, then -1. Deterministic: the result is a function of the inputs
// alone, for any number of threads and, on the CPU, any chunking.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace indexcache {

// q        [M, H, D]  fp32 or bf16, contiguous
// keys     [N, D]     the dtype of q, rows contiguous (any row stride)
// weights  [M, H]     fp32, contiguous; may be negative
// start    [M]        int32, >= 0; first key of the query's range
// end      [M]        int32, <= N; one past the last. Empty ranges (end <= start) give rows of -1.
//                     Checked on the CPU; elsewhere nothing is read back: ranges are cut to [0, N).
// k        >= 1
// Returns  [M, k]     int32 on q's device.
// Scores are fp32 and never stored as an [M, N] matrix. On CUDA bf16, D = 128, H <= 64, k <= 2048 and
// rows at multiples of 16 bytes run as one fused kernel, whose workspace does not depend on N and comes
// from the caching allocator; all else runs as index_topk_torch.
at::Tensor index_topk(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                      const at::Tensor& start, const at::Tensor& end, std::int64_t k);

// The scores themselves, for the queries given: [M, N] fp32, -inf outside [start, end). Plain
// tensor algebra (differentiable in q, keys and weights), for overlap studies, traces and training;
// [M, H, N] fp32 in memory, so use it for few queries at a time.
at::Tensor index_scores(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                        const at::Tensor& start, const at::Tensor& end);

// index_topk by plain tensor algebra, what devices other than the CPU run (on CUDA the selection is a
// kernel, select_rows_params.h). Same contract, arguments taken as valid. Works on as many queries at a time as have chunk_floats scores of single
// heads (512 MiB), one at least.
at::Tensor index_topk_torch(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                            const at::Tensor& start, const at::Tensor& end, std::int64_t k,
                            std::int64_t chunk_floats = std::int64_t{1} << 27);

}  // namespace indexcache
