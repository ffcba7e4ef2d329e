// Feed-forward layers: the gated MLP and the mixture of experts with its sigmoid router. Spec 2.5.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace indexcache {

struct MlpWeights {  // down(silu(gate(x)) * up(x))
  at::Tensor gate;   // [intermediate, hidden]
  at::Tensor up;     // [intermediate, hidden]
  at::Tensor down;   // [hidden, intermediate]
};
at::Tensor mlp_forward(const at::Tensor& x, const MlpWeights& weights);

struct MoeShape {
  std::int64_t num_experts = 0, experts_per_token = 0;
  std::int64_t num_groups = 1, topk_groups = 1;
  double routed_scaling_factor = 1.0;
  bool norm_topk_prob = true;
};

struct MoeWeights {
  at::Tensor router;           // [experts, hidden] fp32
  at::Tensor selection_bias;   // [experts] fp32, e_score_correction_bias: selects, never weighs
  at::Tensor experts_gate_up;  // [experts, 2 * intermediate, hidden], gate rows first
  at::Tensor experts_down;     // [experts, hidden, intermediate]
  MlpWeights shared;  // n_shared_experts * intermediate wide; undefined tensors if there is none
};

struct Routing {
  at::Tensor experts;  // [T, experts_per_token] int64
  at::Tensor weights;  // [T, experts_per_token] fp32
};
// x [T, hidden]. Differentiable in the weights.
Routing moe_route(const at::Tensor& x, const MoeWeights& weights, const MoeShape& shape);

// x [..., hidden]. `load` (optional) gets the tokens each expert was given: [experts] int64.
at::Tensor moe_forward(const at::Tensor& x, const MoeWeights& weights, const MoeShape& shape,
                       at::Tensor* load = nullptr);

}  // namespace indexcache
