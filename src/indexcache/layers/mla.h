// Multi-head latent attention: projections, the expanded form for training and the absorbed form
// for inference. Spec 2.3.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "indexcache/layers/rope.h"

namespace indexcache {

struct MlaShape {
  std::int64_t num_heads = 0;
  std::int64_t qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  std::int64_t kv_lora_rank = 0;
  double softmax_scale = 1.0;
  double latent_norm_eps = 1e-6;  // q_a_layernorm, kv_a_layernorm
};

struct MlaWeights {      // stored [out, in]; h = num_heads
  at::Tensor q_a_proj;   // [q_lora_rank, hidden]
  at::Tensor q_a_norm;   // [q_lora_rank]
  at::Tensor q_b_proj;   // [h * (nope + rope), q_lora_rank]
  at::Tensor kv_a_proj;  // [kv_lora_rank + rope, hidden]
  at::Tensor kv_a_norm;  // [kv_lora_rank]
  at::Tensor kv_b_proj;  // [h * (nope + v), kv_lora_rank]
  at::Tensor o_proj;     // [hidden, h * v]
};

// x [..., T, hidden] is the hidden state after input_layernorm. All functions take any leading
// dimensions.
struct MlaProjected {
  at::Tensor q_latent;  // [..., T, q_lora_rank], normalised; the indexer reads it too
  at::Tensor q_nope;    // [..., T, h, nope]
  at::Tensor q_rope;    // [..., T, h, rope], rotated
  at::Tensor latent;    // [..., T, kv_lora_rank], normalised
  at::Tensor k_rope;    // [..., T, rope], rotated, one for all heads
};
MlaProjected mla_project(const at::Tensor& x, const MlaWeights& weights, const MlaShape& shape,
                         const RopeTable& rope);

// Expanded form. q, k [..., T, h, nope + rope], v [..., T, h, v].
struct MlaExpanded {
  at::Tensor q, k, v;
};
MlaExpanded mla_expand(const MlaProjected& projected, const MlaWeights& weights,
                       const MlaShape& shape);

// Absorbed form. What the cache holds a token: [..., T, kv_lora_rank + rope].
at::Tensor mla_cache_entry(const MlaProjected& projected);
// [..., T, h, kv_lora_rank + rope]: (W_UK^T q_nope | q_rope).
at::Tensor mla_absorb_query(const MlaProjected& projected, const MlaWeights& weights,
                            const MlaShape& shape);
// attended [..., T, h, kv_lora_rank] -> [..., T, h * v]: W_UV applied per head.
at::Tensor mla_expand_output(const at::Tensor& attended, const MlaWeights& weights,
                             const MlaShape& shape);

}  // namespace indexcache
