#include "indexcache/train/lm_loss.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

namespace indexcache {
namespace {

TEST(LmLoss, LossAndGradientsAreThoseOfCrossEntropy) {
  at::manual_seed(1);
  // More tokens than a chunk of logits holds.
  constexpr std::int64_t kTokens = 30, kVocab = 300'000, kHidden = 3;
  const auto options = at::TensorOptions().dtype(at::kDouble);
  auto hidden = at::randn({kTokens, kHidden}, options).requires_grad_(true);
  auto head = at::randn({kVocab, kHidden}, options).requires_grad_(true);
  const auto targets = at::randint(kVocab, {kTokens}, at::kLong);
  const auto weights = at::rand({kTokens}, options);

  const auto expected =
      at::cross_entropy_loss(at::linear(hidden, head), targets, {}, at::Reduction::None);
  (expected * weights).sum().backward();
  const auto grad_hidden = hidden.grad().clone(), grad_head = head.grad().clone();
  hidden.mutable_grad().reset();
  head.mutable_grad().reset();

  const auto found = lm_loss(hidden, head, targets, weights);
  (found.loss * 3).backward();
  EXPECT_LT((found.token_losses - expected.detach()).abs().max().item<double>(), 1e-12);
  EXPECT_NEAR(found.loss.item<double>(), (expected * weights).sum().item<double>(), 1e-9);
  EXPECT_LT((hidden.grad() / 3 - grad_hidden).abs().max().item<double>(), 1e-12);
  EXPECT_LT((head.grad() / 3 - grad_head).abs().max().item<double>(), 1e-12);
  EXPECT_FALSE(found.token_losses.requires_grad());
}

}  // namespace
}  // namespace indexcache
