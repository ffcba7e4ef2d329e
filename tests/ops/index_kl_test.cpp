#include "indexcache/ops/index_kl/index_kl.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <gtest/gtest.h>

#include <limits>

#include "indexcache/ops/index_kl/index_kl_params.h"

namespace indexcache {
namespace {

struct Shape {
  std::int64_t batch = 2, queries = 5, heads = 3, dim = 4, keys = 7;
};
constexpr std::int64_t kKeys = Shape{}.keys;

struct Case {
  at::Tensor mass, q, keys, weights, visible;
};

Case make_case(at::ScalarType dtype, const Shape& shape = {}) {
  const auto options = at::TensorOptions().dtype(dtype);
  Case c;
  c.visible = at::rand({shape.batch, shape.queries, shape.keys}) < 0.6;
  c.visible.select(2, 0).fill_(true);
  const auto logits = at::randn({shape.batch, shape.queries, shape.keys}, options);
  c.mass = at::softmax(
      logits.masked_fill(c.visible.logical_not(), -std::numeric_limits<double>::infinity()), -1);
  c.q = at::randn({shape.batch, shape.queries, shape.heads, shape.dim}, options);
  c.keys = at::randn({shape.batch, shape.keys, shape.dim}, options);
  c.weights = at::randn({shape.batch, shape.queries, shape.heads}, options);
  return c;
}

// The definition, term by term, for autograd.
at::Tensor definition(const Case& c) {
  const auto products = at::relu(at::einsum("bthd,bsd->bths", {c.q, c.keys}));
  const auto scores = at::einsum("bth,bths->bts", {c.weights, products});
  const auto log_q = at::log_softmax(
      scores.masked_fill(c.visible.logical_not(), -std::numeric_limits<double>::infinity()), -1);
  const auto live = c.visible.logical_and(c.mass > 0);
  const auto terms = c.mass * (at::where(live, c.mass, 1.0).log() - at::where(live, log_q, 0.0));
  return at::where(live, terms, 0.0).sum(-1);
}

IndexKl reference(const Case& c) {
  IndexKl out{.kl = at::empty_like(c.weights.select(2, 0).contiguous()),
              .grad_q = at::empty_like(c.q),
              .grad_keys = at::empty_like(c.keys),
              .grad_weights = at::empty_like(c.weights)};
  index_kl_ref({.batch = c.q.size(0),
                .num_queries = c.q.size(1),
                .num_heads = c.q.size(2),
                .head_dim = c.q.size(3),
                .num_keys = c.keys.size(1),
                .mass = c.mass.const_data_ptr<double>(),
                .q = c.q.const_data_ptr<double>(),
                .keys = c.keys.const_data_ptr<double>(),
                .weights = c.weights.const_data_ptr<double>(),
                .visible = c.visible.const_data_ptr<bool>(),
                .kl = out.kl.data_ptr<double>(),
                .grad_q = out.grad_q.data_ptr<double>(),
                .grad_keys = out.grad_keys.data_ptr<double>(),
                .grad_weights = out.grad_weights.data_ptr<double>()});
  return out;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(IndexKl, ValueAndGradientsAreThoseOfItsDefinition) {
  at::manual_seed(1);
  auto c = make_case(at::kDouble);
  for (auto* input : {&c.q, &c.keys, &c.weights}) input->requires_grad_(true);
  const auto expected = definition(c);
  expected.sum().backward();
  const auto found = index_kl(c.mass, c.q.detach(), c.keys.detach(), c.weights.detach(), c.visible);
  EXPECT_LT(largest_difference(found.kl, expected.detach()), 1e-12);
  EXPECT_LT(largest_difference(found.grad_q, c.q.grad()), 1e-12);
  EXPECT_LT(largest_difference(found.grad_keys, c.keys.grad()), 1e-12);
  EXPECT_LT(largest_difference(found.grad_weights, c.weights.grad()), 1e-12);
  EXPECT_GT(found.grad_q.abs().max().item<double>(), 1e-3);
}

TEST(IndexKl, EqualsItsReferenceOnEveryShape) {
  at::manual_seed(6);
  for (const Shape& shape : {Shape{}, Shape{1, 1, 1, 1, 1}, Shape{1, 1, 4, 8, 33},
                             Shape{3, 17, 1, 5, 2}, Shape{2, 9, 8, 32, 65}}) {
    auto c = make_case(at::kDouble, shape);
    c.q.select(3, 0).fill_(0);  // with dim 1 every product is exactly 0, where relu bends
    if (shape.keys > 2) {       // a key that is seen and gets no mass: 0 log 0
      c.mass.select(2, 1).fill_(0);
      c.mass = c.mass / c.mass.sum(-1, /*keepdim=*/true);
    }
    const auto expected = reference(c);
    const auto found = index_kl(c.mass, c.q, c.keys, c.weights, c.visible);
    const double tolerance = 1e-12 * static_cast<double>(shape.queries * shape.heads * shape.dim);
    EXPECT_LT(largest_difference(found.kl, expected.kl), tolerance);
    EXPECT_LT(largest_difference(found.grad_q, expected.grad_q), tolerance);
    EXPECT_LT(largest_difference(found.grad_keys, expected.grad_keys), tolerance);
    EXPECT_LT(largest_difference(found.grad_weights, expected.grad_weights), tolerance);
  }
}

TEST(IndexKl, GradientsAreTheSlopesOfTheValue) {
  at::manual_seed(2);
  const auto c = make_case(at::kDouble);
  const auto value = [&](const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights) {
    return index_kl(c.mass, q, keys, weights, c.visible).kl.sum().item<double>();
  };
  const auto found = index_kl(c.mass, c.q, c.keys, c.weights, c.visible);
  constexpr double kStep = 1e-6;
  const at::Tensor inputs[] = {c.q, c.keys, c.weights};
  const at::Tensor gradients[] = {found.grad_q, found.grad_keys, found.grad_weights};
  for (int which = 0; which < 3; ++which) {
    for (std::int64_t i = 0; i < inputs[which].numel(); i += 3) {
      const auto moved = [&](double by) {
        at::Tensor copies[] = {c.q, c.keys, c.weights};
        copies[which] = copies[which].clone();
        copies[which].view(-1)[i].add_(by);
        return value(copies[0], copies[1], copies[2]);
      };
      const double slope = (moved(kStep) - moved(-kStep)) / (2 * kStep);
      EXPECT_NEAR(gradients[which].view(-1)[i].item<double>(), slope, 1e-7);
    }
  }
}

TEST(IndexKl, IsZeroWhereTheScoresAlreadyPredictTheAttention) {
  at::manual_seed(3);
  auto c = make_case(at::kDouble);
  const auto products = at::relu(at::einsum("bthd,bsd->bths", {c.q, c.keys}));
  const auto scores = at::einsum("bth,bths->bts", {c.weights, products});
  c.mass = at::softmax(
      scores.masked_fill(c.visible.logical_not(), -std::numeric_limits<double>::infinity()), -1);
  const auto found = index_kl(c.mass, c.q, c.keys, c.weights, c.visible);
  EXPECT_LT(found.kl.abs().max().item<double>(), 1e-12);
  EXPECT_LT(found.grad_q.abs().max().item<double>(), 1e-12);
}

TEST(IndexKl, HiddenKeysHaveNoPart) {
  at::manual_seed(4);
  const auto c = make_case(at::kDouble);
  const auto before = index_kl(c.mass, c.q, c.keys, c.weights, c.visible);
  // A key that no query of a sequence sees may hold anything.
  auto visible = c.visible.clone();
  visible.select(2, kKeys - 1).fill_(false);
  auto mass = c.mass.masked_fill(visible.logical_not(), 0);
  mass = mass / mass.sum(-1, true);
  auto keys = c.keys.clone();
  const auto one = index_kl(mass, c.q, keys, c.weights, visible);
  keys.select(1, kKeys - 1).mul_(100);
  const auto two = index_kl(mass, c.q, keys, c.weights, visible);
  EXPECT_TRUE(one.kl.equal(two.kl));
  EXPECT_EQ(two.grad_keys.select(1, kKeys - 1).abs().max().item<double>(), 0);
  EXPECT_FALSE(before.kl.equal(one.kl));
}

TEST(IndexKl, LowPrecisionStaysNearTheExactValue) {
  at::manual_seed(5);
  const auto c = make_case(at::kDouble);
  const auto exact = index_kl(c.mass, c.q, c.keys, c.weights, c.visible);
  const auto fp32 = index_kl(c.mass.to(at::kFloat), c.q.to(at::kFloat), c.keys.to(at::kFloat),
                             c.weights.to(at::kFloat), c.visible);
  EXPECT_EQ(fp32.kl.scalar_type(), at::kFloat);
  EXPECT_LT(largest_difference(fp32.kl, exact.kl), 1e-5);
  EXPECT_LT(largest_difference(fp32.grad_keys, exact.grad_keys), 1e-4);
  const auto bf16 = index_kl(c.mass.to(at::kFloat), c.q.to(at::kBFloat16), c.keys.to(at::kBFloat16),
                             c.weights.to(at::kFloat), c.visible);
  EXPECT_EQ(bf16.grad_q.scalar_type(), at::kBFloat16);
  EXPECT_LT(largest_difference(bf16.kl, exact.kl), 0.2);
}

}  // namespace
}  // namespace indexcache
