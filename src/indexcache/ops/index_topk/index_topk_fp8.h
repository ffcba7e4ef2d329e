// index_topk over an fp8 cache: what index_q and index_k_append made, scored and selected in one op.
//
//   I[t, s] = scale[s] * sum_h weights[t, h] * relu(q[t, h, :] . keys[s, :])
//   out[t]  = the k keys s in [start[t], end[t]) with the largest I[t, s], ascending, minus start[t]
//
// Order, ties, short rows and ranges as in index_topk.h. On CUDA one fused kernel: H <= 64, k <= 2048,
// a workspace that does not depend on the number of keys, nothing read back. The CPU widens the keys and
// runs index_topk. A queries' type that is not the keys' is an InputError.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "indexcache/ops/index_cache.h"

namespace indexcache {

struct IndexKeyRows {
  at::Tensor keys;   // [N, 128] float8_e4m3fn, rows contiguous, a multiple of 16 bytes apart
  at::Tensor scale;  // [N] fp32, contiguous, > 0
  IndexKeyType type;
};

// start, end [M] int32, contiguous: 0 <= start, end <= N. Returns [M, k] int32.
// seeds      [M, k'] int32, rows contiguous: keys that the query's best are likely among, minus start[t],
//            in any order, such as the set of an earlier layer. Negative, repeated and ones outside the range
//            do not count. They change the time only (on CUDA), never the result.
at::Tensor index_topk_fp8(const IndexQueries& queries, const IndexKeyRows& keys,
                          const at::Tensor& start, const at::Tensor& end, std::int64_t k,
                          const std::optional<at::Tensor>& seeds = std::nullopt);

// block_table  [R, W] int32, rows contiguous: key s of a request is key s mod 64 of page
//              block_table[request, s / 64]. Only entries of pages that hold keys of a range are read;
//              they must be pages of the cache (checked on the CPU).
// start, end   [M] int32, contiguous: 0 <= start, end <= 64 W
// tokens_per_request  1 to 4 (decode): query t is of request t / tokens_per_request, R of them;
//                     0 (prefill): all queries are of the request in row 0
at::Tensor index_topk_paged(const IndexQueries& queries, const IndexKeyPages& cache,
                            const at::Tensor& block_table, const at::Tensor& start,
                            const at::Tensor& end, std::int64_t k, std::int64_t tokens_per_request,
                            const std::optional<at::Tensor>& seeds = std::nullopt);

}  // namespace indexcache
