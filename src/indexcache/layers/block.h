// One decoder layer: a struct of weights in, tensors out. Spec 2.6.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <variant>

#include "indexcache/layers/index_set.h"
#include "indexcache/layers/indexer.h"
#include "indexcache/layers/mla.h"
#include "indexcache/layers/moe.h"
#include "indexcache/layers/rope.h"

namespace indexcache {

struct BlockShape {
  MlaShape mla;
  IndexerShape indexer;
  MoeShape moe;
  double rms_norm_eps = 1e-6;
};

struct BlockWeights {
  at::Tensor input_norm;  // [hidden]
  MlaWeights mla;
  std::optional<IndexerWeights> indexer;  // none: the layer can only be Shared
  at::Tensor post_attention_norm;         // [hidden]
  std::variant<MlpWeights, MoeWeights> mlp;
};

// The MLP or the mixture of experts of a layer: x [..., hidden] after post_attention_norm.
// `expert_load` as in moe_forward; untouched by dense layers. Differentiable.
at::Tensor feed_forward(const at::Tensor& x, const BlockWeights& weights, const BlockShape& shape,
                        at::Tensor* expert_load = nullptr);

// What earlier tokens left for this layer: rows [0, first_position) are filled, forward appends its
// own.
struct BlockCache {
  at::Tensor latents;     // [capacity, kv_lora_rank + rope]
  at::Tensor index_keys;  // [capacity, index_head_dim]; undefined for a Shared layer
};

// Inference over one chunk of one sequence: hidden [T, hidden] of tokens first_position ..
// first_position + T - 1. `source_set`, of these tokens, makes the layer Shared; without it the layer
// is Full: it runs its own indexer and leaves its index set in `own_set`. The absorbed form. Not
// differentiable.
at::Tensor block_forward(const at::Tensor& hidden, std::int64_t first_position,
                         const BlockWeights& weights, const BlockShape& shape,
                         const RopeTable& rope, BlockCache& cache, const IndexSet& source_set,
                         IndexSet* own_set);

// --- Parts of it, for those who compare what a layer attends to under different index sets.

// [T, h, kv_lora_rank + rope]: the absorbed query of each token.
at::Tensor attention_query(const at::Tensor& hidden, const BlockWeights& weights,
                           const BlockShape& shape, const RopeTable& rope);
// [T, h * v]: the core attention over an index set, heads side by side: what o_proj reads. The
// cache holds rows [0, first_position + T). Where several tokens fit into a tile of the tensor cores
// (bf16 on CUDA, few heads) it reads the set by groups of neighbouring tokens, which changes the order
// of its sums, and with it their last bits, with the position at which a chunk begins.
at::Tensor core_attention(const at::Tensor& query, std::int64_t first_position,
                          const BlockWeights& weights, const BlockShape& shape,
                          const BlockCache& cache, const IndexSet& index_set);

// What the indexer of a layer that has one scores with.
IndexerProjected index_inputs(const at::Tensor& hidden, const BlockWeights& weights,
                              const BlockShape& shape, const RopeTable& rope);

}  // namespace indexcache
