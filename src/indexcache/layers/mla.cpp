#include "indexcache/layers/mla.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>

#include "indexcache/layers/norm.h"

namespace indexcache {
namespace {

// kv_b_proj per head: W_UK [h, nope, kv_lora_rank] and W_UV [h, v, kv_lora_rank].
struct UpProjections {
  at::Tensor key, value;
};

UpProjections up_projections(const MlaWeights& weights, const MlaShape& shape) {
  const auto per_head = weights.kv_b_proj.view(
      {shape.num_heads, shape.qk_nope_head_dim + shape.v_head_dim, shape.kv_lora_rank});
  return {per_head.narrow(1, 0, shape.qk_nope_head_dim),
          per_head.narrow(1, shape.qk_nope_head_dim, shape.v_head_dim)};
}

}  // namespace

MlaProjected mla_project(const at::Tensor& x, const MlaWeights& weights, const MlaShape& shape,
                         const RopeTable& rope) {
  MlaProjected out;
  out.q_latent = rms_norm(at::linear(x, weights.q_a_proj), weights.q_a_norm, shape.latent_norm_eps);
  const auto q = at::linear(out.q_latent, weights.q_b_proj).unflatten(-1, {shape.num_heads, -1});
  out.q_nope = q.narrow(-1, 0, shape.qk_nope_head_dim);
  out.q_rope = apply_rope(q.narrow(-1, shape.qk_nope_head_dim, shape.qk_rope_head_dim), rope,
                          RopeStyle::kInterleaved, RopeLayout::kTokensHeads);

  const auto kv = at::linear(x, weights.kv_a_proj);
  out.latent =
      rms_norm(kv.narrow(-1, 0, shape.kv_lora_rank), weights.kv_a_norm, shape.latent_norm_eps);
  out.k_rope = apply_rope(kv.narrow(-1, shape.kv_lora_rank, shape.qk_rope_head_dim), rope,
                          RopeStyle::kInterleaved, RopeLayout::kTokens);
  return out;
}

MlaExpanded mla_expand(const MlaProjected& projected, const MlaWeights& weights,
                       const MlaShape& shape) {
  const auto kv =
      at::linear(projected.latent, weights.kv_b_proj).unflatten(-1, {shape.num_heads, -1});
  auto k_rope_sizes = kv.sizes().vec();
  k_rope_sizes.back() = shape.qk_rope_head_dim;
  const auto k_rope = projected.k_rope.unsqueeze(-2).expand(k_rope_sizes);
  return {.q = at::cat({projected.q_nope, projected.q_rope}, -1),
          .k = at::cat({kv.narrow(-1, 0, shape.qk_nope_head_dim), k_rope.to(kv.scalar_type())}, -1),
          .v = kv.narrow(-1, shape.qk_nope_head_dim, shape.v_head_dim)};
}

at::Tensor mla_cache_entry(const MlaProjected& projected) {
  return at::cat({projected.latent, projected.k_rope}, -1);
}

at::Tensor mla_absorb_query(const MlaProjected& projected, const MlaWeights& weights,
                            const MlaShape& shape) {
  // [..., h, T, nope] x [h, nope, latent] -> [..., h, T, latent].
  const auto absorbed =
      at::matmul(projected.q_nope.transpose(-2, -3), up_projections(weights, shape).key)
          .transpose(-2, -3);
  return at::cat({absorbed, projected.q_rope}, -1);
}

at::Tensor mla_expand_output(const at::Tensor& attended, const MlaWeights& weights,
                             const MlaShape& shape) {
  return at::matmul(attended.transpose(-2, -3),
                    up_projections(weights, shape).value.transpose(-1, -2))
      .transpose(-2, -3)
      .flatten(-2);
}

}  // namespace indexcache
