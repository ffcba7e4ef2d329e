#include "indexcache/layers/indexer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>

#include <cmath>

namespace indexcache {
namespace {

constexpr double kKeyNormEps = 1e-6;  // whatever rms_norm_eps is (spec, fact 4)

// The first rope_head_dim coordinates rotated, the others as they are.
at::Tensor rotate_first(const at::Tensor& x, const IndexerShape& shape, const RopeTable& rope,
                        RopeLayout layout) {
  const auto rotated =
      apply_rope(x.narrow(-1, 0, shape.rope_head_dim), rope, shape.rope_style, layout);
  const auto rest = x.narrow(-1, shape.rope_head_dim, shape.head_dim - shape.rope_head_dim);
  return at::cat({rotated, rest}, -1);
}

}  // namespace

IndexerProjected indexer_project(const at::Tensor& x, const at::Tensor& q_latent,
                                 const IndexerWeights& weights, const IndexerShape& shape,
                                 const RopeTable& rope) {
  IndexerProjected out;
  const auto q = at::linear(q_latent, weights.wq_b).unflatten(-1, {shape.num_heads, -1});
  out.q = rotate_first(q, shape, rope, RopeLayout::kTokensHeads);

  const auto raw_keys = at::linear(x, weights.wk);
  const auto wide = weights.k_norm_weight.scalar_type();  // fp32, or double in gradient checks
  const auto keys = at::layer_norm(raw_keys.to(wide), {shape.head_dim}, weights.k_norm_weight,
                                   weights.k_norm_bias, kKeyNormEps)
                        .to(raw_keys.scalar_type());
  out.keys = rotate_first(keys, shape, rope, RopeLayout::kTokens);

  const double scale = 1.0 / std::sqrt(static_cast<double>(shape.num_heads * shape.head_dim));
  out.weights = at::linear(x.to(weights.weights_proj.scalar_type()), weights.weights_proj) * scale;
  return out;
}

}  // namespace indexcache
