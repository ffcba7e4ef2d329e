#include "indexcache/ops/selected_attention/selected_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/softmax.h>

#include <array>
#include <limits>

#include "indexcache/ops/wide_product.h"

namespace indexcache {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// [B, h, T, d] -> [B h, T, d].
at::Tensor rows(const at::Tensor& x) { return x.flatten(0, 1); }

// [B h, M, N] in wide precision.
at::Tensor probabilities(const at::Tensor& q, const at::Tensor& k, const at::Tensor& visible,
                         double scale) {
  auto logits = wide_product(rows(q), rows(k).transpose(1, 2)).mul_(scale);
  const auto by_head = logits.view({q.size(0), q.size(1), q.size(2), k.size(2)});
  by_head.masked_fill_(visible.logical_not().unsqueeze(1), -kInfinity);
  return at::softmax(logits, -1);
}

at::Tensor mean_over_heads(const at::Tensor& p, const at::Tensor& q) {
  const std::array<std::int64_t, 2> heads = {q.size(0), q.size(1)};
  return p.unflatten(0, heads).mean(1);
}

}  // namespace

at::Tensor attention_mass(const at::Tensor& q, const at::Tensor& k, const at::Tensor& visible,
                          double scale) {
  return mean_over_heads(probabilities(q, k, visible, scale), q);
}

SelectedAttention selected_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& visible, double scale) {
  const auto p = probabilities(q, k, visible, scale);
  const std::array<std::int64_t, 2> heads = {q.size(0), q.size(1)};
  return {.out = at::bmm(p.to(v.scalar_type()), rows(v)).unflatten(0, heads),
          .mass = mean_over_heads(p, q)};
}

SelectedAttentionGrad selected_attention_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                  const at::Tensor& k, const at::Tensor& v,
                                                  const at::Tensor& out, const at::Tensor& visible,
                                                  double scale) {
  // dp = dout v^T; dlogits = p (dp - sum_s p dp) scale, and sum_s p dp = dout . out.
  const auto p = probabilities(q, k, visible, scale);
  const auto g = rows(grad_out);
  const auto wide = p.scalar_type();
  const auto row_sum = (g.to(wide) * rows(out).to(wide)).sum(-1, /*keepdim=*/true);
  const auto grad_v = at::bmm(p.to(v.scalar_type()).transpose(1, 2), g);
  const auto grad_logits = wide_product(g, rows(v).transpose(1, 2))
                               .sub_(row_sum)
                               .mul_(p)
                               .mul_(scale)
                               .to(q.scalar_type());
  const std::array<std::int64_t, 2> heads = {q.size(0), q.size(1)};
  return {.q = at::bmm(grad_logits, rows(k)).unflatten(0, heads),
          .k = at::bmm(grad_logits.transpose(1, 2), rows(q)).unflatten(0, heads),
          .v = grad_v.unflatten(0, heads)};
}

}  // namespace indexcache
