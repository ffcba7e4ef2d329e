#include "indexcache/ops/selected_attention/selected_attention.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <limits>

#include "indexcache/ops/selected_attention/selected_attention_params.h"

namespace indexcache {
namespace {

struct Shape {
  std::int64_t batch = 2, heads = 3, queries = 4, keys = 6, dim = 5, value_dim = 2;
};
constexpr std::int64_t kBatch = Shape{}.batch;
constexpr double kScale = 0.7;

struct Case {
  at::Tensor q, k, v, visible;
};

Case make_case(const Shape& shape = {}) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  Case c{.q = at::randn({shape.batch, shape.heads, shape.queries, shape.dim}, options),
         .k = at::randn({shape.batch, shape.heads, shape.keys, shape.dim}, options),
         .v = at::randn({shape.batch, shape.heads, shape.keys, shape.value_dim}, options),
         .visible = at::rand({shape.batch, shape.queries, shape.keys}) < 0.5};
  c.visible.select(2, shape.keys / 5).fill_(true);
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

TEST(SelectedAttention, EqualsItsReferenceOnEveryShape) {
  at::manual_seed(4);
  for (const Shape& shape : {Shape{}, Shape{1, 1, 1, 1, 1, 1}, Shape{1, 4, 1, 33, 7, 1},
                             Shape{3, 1, 17, 2, 1, 9}, Shape{2, 5, 9, 65, 48, 32}}) {
    const auto c = make_case(shape);
    const auto found = selected_attention(c.q, c.k, c.v, c.visible, kScale);
    const auto grad_out = at::randn(found.out.sizes(), found.out.options());
    const auto grad =
        selected_attention_backward(grad_out, c.q, c.k, c.v, found.out, c.visible, kScale);

    const SelectedAttentionParams params{.batch = shape.batch,
                                         .num_heads = shape.heads,
                                         .num_queries = shape.queries,
                                         .num_keys = shape.keys,
                                         .dim = shape.dim,
                                         .value_dim = shape.value_dim,
                                         .scale = kScale,
                                         .q = c.q.const_data_ptr<double>(),
                                         .k = c.k.const_data_ptr<double>(),
                                         .v = c.v.const_data_ptr<double>(),
                                         .visible = c.visible.const_data_ptr<bool>()};
    const auto out = at::empty_like(found.out), mass = at::empty_like(found.mass);
    selected_attention_ref(params, out.data_ptr<double>(), mass.data_ptr<double>());
    const auto q = at::empty_like(c.q), k = at::empty_like(c.k), v = at::empty_like(c.v);
    selected_attention_backward_ref(params, {.grad_out = grad_out.const_data_ptr<double>(),
                                             .grad_q = q.data_ptr<double>(),
                                             .grad_k = k.data_ptr<double>(),
                                             .grad_v = v.data_ptr<double>()});
    EXPECT_LT(largest_difference(found.out, out), 1e-12);
    EXPECT_LT(largest_difference(found.mass, mass), 1e-12);
    EXPECT_LT(largest_difference(grad.q, q), 1e-11);
    EXPECT_LT(largest_difference(grad.k, k), 1e-11);
    EXPECT_LT(largest_difference(grad.v, v), 1e-11);
  }
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
