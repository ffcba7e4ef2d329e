#include "indexcache/ops/selected_attention/selected_attention.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <limits>

namespace indexcache {
namespace {

constexpr std::int64_t kBatch = 2, kHeads = 3, kQueries = 4, kKeys = 6, kDim = 5, kValueDim = 2;
constexpr double kScale = 0.7;

struct Case {
  at::Tensor q, k, v, visible;
};

Case make_case() {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  Case c{.q = at::randn({kBatch, kHeads, kQueries, kDim}, options),
         .k = at::randn({kBatch, kHeads, kKeys, kDim}, options),
         .v = at::randn({kBatch, kHeads, kKeys, kValueDim}, options),
         .visible = at::rand({kBatch, kQueries, kKeys}) < 0.5};
  c.visible.select(2, 1).fill_(true);
  return c;
}

at::Tensor definition_of_p(const Case& c) {
  const auto logits = at::einsum("bhtd,bhsd->bhts", {c.q, c.k}) * kScale;
  return at::softmax(logits.masked_fill(c.visible.logical_not().unsqueeze(1),
                                        -std::numeric_limits<double>::infinity()),
                     -1);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(SelectedAttention, OutputMassAndGradientsAreThoseOfTheDefinition) {
  at::manual_seed(1);
  auto c = make_case();
  for (auto* input : {&c.q, &c.k, &c.v}) input->requires_grad_(true);
  const auto p = definition_of_p(c);
  const auto expected = at::einsum("bhts,bhsd->bhtd", {p, c.v});
  const auto grad_out = at::randn(expected.sizes(), expected.options());
  expected.backward(grad_out);

  const auto q = c.q.detach(), k = c.k.detach(), v = c.v.detach();
  const auto found = selected_attention(q, k, v, c.visible, kScale);
  EXPECT_LT(largest_difference(found.out, expected.detach()), 1e-12);
  EXPECT_LT(largest_difference(found.mass, p.detach().mean(1)), 1e-12);
  const auto grad = selected_attention_backward(grad_out, q, k, v, found.out, c.visible, kScale);
  EXPECT_LT(largest_difference(grad.q, c.q.grad()), 1e-12);
  EXPECT_LT(largest_difference(grad.k, c.k.grad()), 1e-12);
  EXPECT_LT(largest_difference(grad.v, c.v.grad()), 1e-12);
}

TEST(SelectedAttention, HiddenKeysGetNoMassAndNoGradient) {
  at::manual_seed(2);
  auto c = make_case();
  c.visible.select(2, 3).fill_(false);
  const auto found = selected_attention(c.q, c.k, c.v, c.visible, kScale);
  EXPECT_EQ(found.mass.select(2, 3).abs().max().item<double>(), 0);
  EXPECT_LT(largest_difference(found.mass.sum(-1), at::ones_like(found.mass.sum(-1))), 1e-12);
  const auto grad = selected_attention_backward(at::randn(found.out.sizes(), found.out.options()),
                                                c.q, c.k, c.v, found.out, c.visible, kScale);
  EXPECT_EQ(grad.k.select(2, 3).abs().max().item<double>(), 0);
  EXPECT_EQ(grad.v.select(2, 3).abs().max().item<double>(), 0);
}

TEST(SelectedAttention, OneVisibilityServesAllSequences) {
  at::manual_seed(3);
  auto c = make_case();
  const auto one = c.visible.narrow(0, 0, 1);
  const auto broadcast = selected_attention(c.q, c.k, c.v, one, kScale);
  const auto repeated = selected_attention(c.q, c.k, c.v, one.repeat({kBatch, 1, 1}), kScale);
  EXPECT_TRUE(broadcast.out.equal(repeated.out));
  EXPECT_TRUE(broadcast.mass.equal(repeated.mass));
}

}  // namespace
}  // namespace indexcache
