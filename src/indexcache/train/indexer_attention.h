// The attention of layers in the stages that train indexers, and the indexers' losses: walks over
// chunks of queries, differentiable, memory linear in the context.
//
// p^j_t is the head-averaged attention of layer j at query t, q^l_t the softmax of Full layer l's
// index scores, D(l) = {l} and the layers whose source is l. A Full layer's loss is (arXiv
// 2603.12201, equations 1 and 2; means over the queries of all sequences)
//
//   L_multi  1/|D(l)| sum over j in D(l) of mean_t KL(p^j_t || q^l_t)
//   L_avg    mean_t KL(1/|D(l)| sum over j of p^j_t || q^l_t)
//
// They differ by a constant of the indexer: their gradients are equal (Proposition 1). The dense
// form is over all s <= t; the sparse form over the index set T^l_t, to which both distributions
// are restricted. p is a constant.
//
// index_set: [B, T, k] int32, positions in the sequence, -1 padded; undefined for the dense form.
// chunk_elements bounds B * heads * queries * keys of a chunk; attention_chunk_elements() is the
// choice for a device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "indexcache/layers/indexer.h"
#include "indexcache/layers/mla.h"

namespace indexcache {

// Enough to fill a GPU, few enough to skip later keys (a chunk stops at its last query) and to stay
// in a CPU's caches.
inline std::int64_t attention_chunk_elements(at::Device device) {
  return device.is_cuda() ? std::int64_t{1} << 27 : std::int64_t{1} << 21;
}

struct IndexerAttention {
  at::Tensor out;  // [B, T, h, v]
  at::Tensor kl;   // mean_t KL(p_t || q_t): scalar
};

// One layer's attention and its term of L_multi in one walk. attention: q, k [B, T, h, d],
// v [B, T, h, v]; indexer: its own or its source's, of the same tokens.
// Gradients: `out` to q, k, v; `kl` to the indexer alone.
IndexerAttention indexer_attention(const MlaExpanded& attention, double softmax_scale,
                                   const IndexerProjected& indexer, const at::Tensor& index_set,
                                   std::int64_t chunk_elements);

// `out` alone, for a layer that no indexer learns from.
at::Tensor set_attention(const MlaExpanded& attention, double softmax_scale,
                         const at::Tensor& index_set, std::int64_t chunk_elements);

// L_avg of one Full layer: scalar. readers: q and k of each layer of D(l). The index scores are
// computed once, not once a reader.
at::Tensor averaged_index_kl(const std::vector<MlaExpanded>& readers, double softmax_scale,
                             const IndexerProjected& indexer, const at::Tensor& index_set,
                             std::int64_t chunk_elements);

// The index sets that the indexer selects for itself: [B, T, k] int32. Not differentiable.
at::Tensor select_own_sets(const IndexerProjected& indexer, std::int64_t top_k);

}  // namespace indexcache
