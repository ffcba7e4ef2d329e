// The attention of one layer in the stages that train its indexer, and the indexer's loss: one walk
// over chunks of queries, differentiable, memory linear in the context.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "indexcache/layers/indexer.h"
#include "indexcache/layers/mla.h"

namespace indexcache {

struct IndexerAttention {
  at::Tensor out;  // [B, T, h, v]
  // Mean over all queries of KL(head-averaged attention || softmax of the index scores): scalar.
  at::Tensor kl;
};

// attention: q, k [B, T, h, d], v [B, T, h, v]; indexer: of the same tokens. Without `index_set`
// the dense form: every query sees all tokens up to itself. With it ([B, T, k] int32, positions in
// the sequence, -1 padded) the sparse form: the attention and both distributions of the KL are
// restricted to the set.
// Gradients: `out` to q, k, v; `kl` to the indexer alone, the attention is a constant there.
// chunk_elements bounds B * heads * queries * keys of a chunk.
IndexerAttention indexer_attention(const MlaExpanded& attention, double softmax_scale,
                                   const IndexerProjected& indexer, const at::Tensor& index_set,
                                   std::int64_t chunk_elements);

// The index sets that the indexer selects for itself: [B, T, k] int32. Not differentiable.
at::Tensor select_own_sets(const IndexerProjected& indexer, std::int64_t top_k);

}  // namespace indexcache
