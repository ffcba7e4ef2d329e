// The lightning indexer's projections, spec 2.4. Scoring and selection are the op index_topk.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "indexcache/layers/rope.h"

namespace indexcache {

struct IndexerShape {
  std::int64_t num_heads = 0, head_dim = 0;
  std::int64_t rope_head_dim = 0;  // rotated: the first rope_head_dim of each head
  std::int64_t top_k = 0;
  RopeStyle rope_style = RopeStyle::kInterleaved;
};

struct IndexerWeights {      // stored [out, in]
  at::Tensor wq_b;           // [heads * head_dim, q_lora_rank]
  at::Tensor wk;             // [head_dim, hidden]
  at::Tensor k_norm_weight;  // [head_dim] LayerNorm, eps 1e-6, in fp32
  at::Tensor k_norm_bias;    // [head_dim]
  at::Tensor weights_proj;  // [heads, hidden], kept in fp32: bf16 outputs flip near-tied selections
};

struct IndexerProjected {
  at::Tensor q;        // [..., T, heads, head_dim]
  at::Tensor keys;     // [..., T, head_dim]
  at::Tensor weights;  // [..., T, heads] fp32, scaled by heads^-1/2 head_dim^-1/2
};
// x [..., T, hidden] after input_layernorm; q_latent [..., T, q_lora_rank] normalised.
IndexerProjected indexer_project(const at::Tensor& x, const at::Tensor& q_latent,
                                 const IndexerWeights& weights, const IndexerShape& shape,
                                 const RopeTable& rope);

}  // namespace indexcache
