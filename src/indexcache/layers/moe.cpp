#include "indexcache/layers/moe.h"

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scatter.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros_like.h>

#include <limits>
#include <vector>

namespace indexcache {
namespace {

constexpr double kProbabilityFloor = 1e-20;  // in the division by the sum of the chosen weights

// The dtype that matrix products of x run in: autocast's while it is on, else x's own.
at::ScalarType product_dtype(const at::Tensor& x) {
  const auto device = x.device().type();
  return at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device)
                                                   : x.scalar_type();
}

// Groups whose two best experts sum highest stay; the others' experts get -inf.
at::Tensor mask_groups(const at::Tensor& choice, const MoeShape& shape) {
  const auto grouped = choice.unflatten(-1, {shape.num_groups, -1});
  const auto group_score = std::get<0>(grouped.topk(2, -1)).sum(-1);
  const auto kept = std::get<1>(group_score.topk(shape.topk_groups, -1, true, false));
  const auto dropped = at::scatter(at::zeros_like(group_score).fill_(1), -1, kept, 0).to(at::kBool);
  return grouped.masked_fill(dropped.unsqueeze(-1), -std::numeric_limits<double>::infinity())
      .flatten(-2);
}

// x [N, in] in runs, run e through matrices[e] [out, in]; `ends` [E] are the runs' ends.
at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends) {
  const auto dtype = product_dtype(x);
  if (x.is_cuda() && dtype == at::kBFloat16) {
    return at::_grouped_mm(x.to(dtype), matrices.to(dtype).transpose(1, 2), ends.to(at::kInt));
  }
  const auto host_ends = ends.cpu();
  const auto* end = host_ends.const_data_ptr<std::int64_t>();
  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (std::int64_t expert = 0; expert < matrices.size(0); ++expert) {
    if (end[expert] > begin) {
      parts.push_back(at::linear(x.narrow(0, begin, end[expert] - begin), matrices[expert]));
    }
    begin = end[expert];
  }
  if (parts.empty()) return x.new_empty({0, matrices.size(1)});
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

// x [T, hidden] -> the experts' weighted sum [T, hidden]. Tokens are sorted by expert, run in one
// grouped product, and sorted back; each token's experts are summed in the order of its routing, so
// the result is deterministic.
at::Tensor routed_experts(const at::Tensor& x, const MoeWeights& weights, const Routing& routing,
                          const at::Tensor& counts) {
  const auto num_tokens = x.size(0);
  const auto per_token = routing.experts.size(1);
  const auto order = routing.experts.flatten().argsort(/*stable=*/true, 0, false);
  const auto ends = counts.cumsum(0);
  const auto sorted = x.unsqueeze(1)
                          .expand({num_tokens, per_token, x.size(1)})
                          .flatten(0, 1)
                          .index_select(0, order);
  const auto gate_up = grouped_linear(sorted, weights.experts_gate_up, ends).chunk(2, -1);
  const auto out = grouped_linear(at::silu(gate_up[0]) * gate_up[1], weights.experts_down, ends);
  auto position = at::empty_like(order);
  position.scatter_(0, order, at::arange(order.size(0), order.options()));
  return (out.index_select(0, position).unflatten(0, {num_tokens, per_token}) *
          routing.weights.to(out.scalar_type()).unsqueeze(-1))
      .sum(1);
}

}  // namespace

at::Tensor mlp_forward(const at::Tensor& x, const MlpWeights& weights) {
  return at::linear(at::silu(at::linear(x, weights.gate)) * at::linear(x, weights.up),
                    weights.down);
}

Routing moe_route(const at::Tensor& x, const MoeWeights& weights, const MoeShape& shape) {
  at::Tensor scores;
  {
    // The router's product stays in fp32 under autocast too: bf16 flips near-tied experts.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    scores = at::sigmoid(at::linear(x.to(weights.router.scalar_type()), weights.router));
  }
  auto choice = scores.detach() + weights.selection_bias;
  if (shape.num_groups > 1) choice = mask_groups(choice, shape);
  Routing routing;
  routing.experts = std::get<1>(choice.topk(shape.experts_per_token, -1));
  routing.weights = scores.gather(-1, routing.experts);
  if (shape.norm_topk_prob) {
    routing.weights = routing.weights / (routing.weights.sum(-1, true) + kProbabilityFloor);
  }
  routing.weights = routing.weights * shape.routed_scaling_factor;
  return routing;
}

at::Tensor moe_forward(const at::Tensor& x, const MoeWeights& weights, const MoeShape& shape,
                       at::Tensor* load) {
  const auto tokens = x.flatten(0, -2);
  const auto routing = moe_route(tokens, weights, shape);
  // Not bincount: on CUDA it waits for the device.
  const auto counts = (routing.experts.flatten().unsqueeze(1) ==
                       at::arange(shape.num_experts, routing.experts.options()))
                          .sum(0);
  if (load != nullptr) *load = counts;
  auto out = routed_experts(tokens, weights, routing, counts).view_as(x);
  if (weights.shared.gate.defined()) out = out + mlp_forward(x, weights.shared);
  return out;
}

}  // namespace indexcache
