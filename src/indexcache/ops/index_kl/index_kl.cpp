#include "indexcache/ops/index_kl/index_kl.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/xlogy.h>

#include <array>
#include <limits>

#include "indexcache/ops/wide_product.h"

namespace indexcache {

IndexKl index_kl(const at::Tensor& mass, const at::Tensor& q, const at::Tensor& keys,
                 const at::Tensor& weights, const at::Tensor& visible) {
  const auto batch = q.size(0), num_queries = q.size(1), num_heads = q.size(2);
  const auto num_keys = keys.size(1);
  const std::array<std::int64_t, 3> by_query = {batch * num_queries, num_heads, num_keys};
  const std::array<std::int64_t, 3> by_sequence = {batch, num_queries * num_heads, num_keys};

  const auto q_rows = q.flatten(1, 2);                                   // [B, M H, D]
  const auto relu = at::bmm(q_rows, keys.transpose(1, 2)).relu_();       // [B, M H, N]
  const auto w = weights.to(q.scalar_type()).flatten(0, 1);              // [B M, H]
  const auto scores = wide_product(w.unsqueeze(1), relu.view(by_query))  // [B M, 1, N]
                          .view({batch, num_queries, num_keys});

  // sum p (log p - I + lse): p is 0 where a key is hidden, so I needs no mask there.
  auto kl = at::xlogy(mass, mass).sub_(mass * scores).sum(-1);
  scores.masked_fill_(visible.logical_not(), -std::numeric_limits<double>::infinity());
  const auto lse = at::logsumexp(scores, -1, /*keepdim=*/true);
  kl.add_(lse.squeeze(-1));

  const auto grad_scores =
      (scores - lse).exp_().sub_(mass).to(q.scalar_type()).flatten(0, 1);  // [B M, N]
  const auto grad_w = wide_product(relu.view(by_query), grad_scores.unsqueeze(-1));
  const auto grad_products =
      at::threshold_backward(w.unsqueeze(-1) * grad_scores.unsqueeze(1), relu.view(by_query), 0)
          .view(by_sequence);
  return {.kl = kl,
          .grad_q = at::bmm(grad_products, keys).view_as(q),
          .grad_keys = at::bmm(grad_products.transpose(1, 2), q_rows),
          .grad_weights = grad_w.view_as(weights).to(weights.scalar_type())};
}

}  // namespace indexcache
