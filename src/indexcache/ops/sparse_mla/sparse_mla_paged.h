// sparse_mla over a cache that latent_append fills: pages of latents in bf16 or e4m3, read by index set
// or by the union of neighbouring queries' sets. Formula, empty rows and lse as in sparse_mla.h, with
// kv[s] as kernels/latent_row.h reads it and value_dim 512.
//
// q is bf16 of 1 to 128 heads. On CUDA the tensor-core kernel, nothing read back; where the queries'
// sets hold four times as many entries as an e4m3 cache keys, it is converted to bf16 first, the bits
// of the result being the same (latent_expansion.h: 1152 bytes a key of temporary memory, 604 MB at
// most). The CPU gathers the rows that are used and runs sparse_mla. No gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

namespace indexcache {

// pages        [P, S, at least 576] bf16 or [P, S, at least 656] uint8; rows contiguous, row and page
//              strides multiples of 16 bytes; S a power of two, or P = 1 without a table (plain rows)
// block_table  [R, W] int32, rows contiguous: id s of request r is row s mod S of page
//              block_table[r, s / S]; a page below 0 holds no keys. Without: ids are slots, page * S +
//              row.
// Ids outside the cache (below 0, beyond W S or P S) are skipped. Table entries that are used must be
// below P: checked on the CPU.
struct LatentCache {
  at::Tensor pages;
  std::optional<at::Tensor> block_table = std::nullopt;
};

// q        [M, h, 576]  bf16, contiguous
// request  [M]          int32: row of the block table; without: all 0. In [0, R): checked on the CPU.
// indices  [M, k]       int32, contiguous, any order, duplicates count as often as they occur
// split                 kWhole where queries are many, kCluster where they are few (decode; below
//                       half of the GPU's multiprocessors); the bits of a result depend on it, on
//                       nothing else of the launch
SparseMlaResult sparse_mla_paged(const at::Tensor& q, const LatentCache& cache,
                                 const std::optional<at::Tensor>& request,
                                 const at::Tensor& indices, double softmax_scale,
                                 EntrySplit split = EntrySplit::kWhole);

// group_begin  [G + 1]  int32: group g is the rows [group_begin[g], group_begin[g + 1]) of q, up to 3;
//                       all rows of q are in a group
// request      [G]      int32 as above, of each group
// entries      [G, E]   int32, counts [G] int32: index_union's
SparseMlaResult sparse_mla_union(const at::Tensor& q, const LatentCache& cache,
                                 const at::Tensor& group_begin,
                                 const std::optional<at::Tensor>& request,
                                 const at::Tensor& entries, const at::Tensor& counts,
                                 double softmax_scale, EntrySplit split = EntrySplit::kWhole);

}  // namespace indexcache
