#include "indexcache/train/indexer_attention.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace indexcache {
namespace {

constexpr std::int64_t kBatch = 2, kTokens = 40, kHeads = 2, kDim = 6, kValueDim = 4;
constexpr std::int64_t kIndexHeads = 3, kIndexDim = 5;
constexpr double kScale = 0.4;
constexpr std::int64_t kWhole = std::int64_t{1} << 40;  // all queries in one chunk
constexpr std::int64_t kSmall = 1;                      // the smallest chunks

struct Inputs {
  MlaExpanded attention;
  IndexerProjected indexer;

  std::vector<at::Tensor> all() const {
    return {attention.q, attention.k, attention.v, indexer.q, indexer.keys, indexer.weights};
  }
};

Inputs make_inputs(at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype);
  Inputs inputs{.attention = {.q = at::randn({kBatch, kTokens, kHeads, kDim}, options),
                              .k = at::randn({kBatch, kTokens, kHeads, kDim}, options),
                              .v = at::randn({kBatch, kTokens, kHeads, kValueDim}, options)},
                .indexer = {.q = at::randn({kBatch, kTokens, kIndexHeads, kIndexDim}, options),
                            .keys = at::randn({kBatch, kTokens, kIndexDim}, options),
                            .weights = at::randn({kBatch, kTokens, kIndexHeads}, options)}};
  for (auto& input : inputs.all()) input.requires_grad_(true);
  return inputs;
}

// Some keys of the past, the query itself among them, in no order of interest; -1 padded.
at::Tensor some_sets(std::int64_t k) {
  auto sets = at::full({kBatch, kTokens, k}, -1, at::kInt);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t i = 0; i < std::min(k, t + 1); ++i)
      sets.select(1, t).select(1, i).fill_(t - i);
  }
  return sets;
}

struct Outcome {
  at::Tensor out, kl;
  std::vector<at::Tensor> gradients;
};

Outcome run(const Inputs& inputs, const at::Tensor& sets, std::int64_t chunk,
            const at::Tensor& grad_out, double kl_weight) {
  const auto result = indexer_attention(inputs.attention, kScale, inputs.indexer, sets, chunk);
  ((result.out * grad_out).sum() + result.kl * kl_weight).backward();
  Outcome outcome{.out = result.out.detach(), .kl = result.kl.detach(), .gradients = {}};
  for (auto& input : inputs.all()) {
    outcome.gradients.push_back(input.grad().clone());
    input.mutable_grad().reset();
  }
  return outcome;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

void expect_same(const Outcome& a, const Outcome& b, double bound) {
  EXPECT_LT(largest_difference(a.out, b.out), bound);
  EXPECT_LT(largest_difference(a.kl, b.kl), bound);
  for (std::size_t i = 0; i < a.gradients.size(); ++i) {
    EXPECT_LT(largest_difference(a.gradients[i], b.gradients[i]), bound) << "input " << i;
  }
}

TEST(IndexerAttention, ChunksChangeNothing) {
  at::manual_seed(1);
  const auto inputs = make_inputs(at::kDouble);
  const auto grad = at::randn({kBatch, kTokens, kHeads, kValueDim}, at::kDouble);
  for (const auto& sets : {at::Tensor(), some_sets(7)}) {
    expect_same(run(inputs, sets, kWhole, grad, 1.0), run(inputs, sets, kSmall, grad, 1.0), 1e-12);
  }
}

TEST(IndexerAttention, SparseEqualsDenseWhereTheSetHoldsEverything) {
  at::manual_seed(2);
  const auto inputs = make_inputs(at::kDouble);
  const auto grad = at::randn({kBatch, kTokens, kHeads, kValueDim}, at::kDouble);
  expect_same(run(inputs, at::Tensor(), kSmall, grad, 1.0),
              run(inputs, some_sets(kTokens + 3), kSmall, grad, 1.0), 1e-12);
}

TEST(IndexerAttention, OutputIsCausalAttention) {
  at::manual_seed(3);
  const auto inputs = make_inputs(at::kDouble);
  const auto padded = at::constant_pad_nd(inputs.attention.v.detach(), {0, kDim - kValueDim});
  const auto expected =
      at::scaled_dot_product_attention(inputs.attention.q.detach().transpose(1, 2),
                                       inputs.attention.k.detach().transpose(1, 2),
                                       padded.transpose(1, 2), {}, 0.0, true, kScale)
          .transpose(1, 2)
          .narrow(-1, 0, kValueDim);
  const auto found =
      indexer_attention(inputs.attention, kScale, inputs.indexer, at::Tensor(), kSmall);
  EXPECT_LT(largest_difference(found.out.detach(), expected), 1e-12);
}

TEST(IndexerAttention, ModelAndIndexerLearnFromTheirOwnLosses) {
  at::manual_seed(4);
  const auto inputs = make_inputs(at::kDouble);
  const auto grad = at::randn({kBatch, kTokens, kHeads, kValueDim}, at::kDouble);
  const auto none = at::zeros_like(grad);
  const auto from_output = run(inputs, some_sets(7), kSmall, grad, 0.0);
  const auto from_kl = run(inputs, some_sets(7), kSmall, none, 1.0);
  for (std::size_t i = 0; i < 6; ++i) {
    const bool attention = i < 3;
    EXPECT_EQ(from_output.gradients[i].abs().max().item<double>() > 0, attention) << i;
    EXPECT_EQ(from_kl.gradients[i].abs().max().item<double>() > 0, !attention) << i;
  }
}

TEST(IndexerAttention, LossIsTheMeanOverQueries) {
  at::manual_seed(5);
  const auto inputs = make_inputs(at::kDouble);
  const auto both = indexer_attention(inputs.attention, kScale, inputs.indexer, {}, kWhole).kl;
  double sum = 0;
  for (std::int64_t b = 0; b < kBatch; ++b) {
    const auto one = [&](const at::Tensor& x) { return x.detach().narrow(0, b, 1); };
    const auto& a = inputs.attention;
    const auto& i = inputs.indexer;
    sum += indexer_attention({.q = one(a.q), .k = one(a.k), .v = one(a.v)}, kScale,
                             {.q = one(i.q), .keys = one(i.keys), .weights = one(i.weights)}, {},
                             kWhole)
               .kl.item<double>();
  }
  EXPECT_NEAR(both.item<double>(), sum / kBatch, 1e-12);
}

// Three layers that read from one Full layer, and that layer's indexer.
struct Group {
  std::vector<MlaExpanded> readers;
  IndexerProjected indexer;
};

Group make_group() {
  Group group{.readers = {}, .indexer = make_inputs(at::kDouble).indexer};
  for (int i = 0; i < 3; ++i) group.readers.push_back(make_inputs(at::kDouble).attention);
  return group;
}

// Loss and its gradients of q, keys and weights.
Outcome learn(const IndexerProjected& indexer, const at::Tensor& loss) {
  loss.backward();
  Outcome outcome{.out = at::zeros({}, at::kDouble), .kl = loss.detach(), .gradients = {}};
  for (auto input : {indexer.q, indexer.keys, indexer.weights}) {
    outcome.gradients.push_back(input.grad().clone());
    input.mutable_grad().reset();
  }
  return outcome;
}

Outcome learn_multi(const Group& group, const at::Tensor& sets, std::int64_t chunk) {
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (const auto& reader : group.readers) {
    sum = sum + indexer_attention(reader, kScale, group.indexer, sets, chunk).kl;
  }
  return learn(group.indexer, sum / static_cast<double>(group.readers.size()));
}

Outcome learn_average(const Group& group, const at::Tensor& sets, std::int64_t chunk) {
  return learn(group.indexer, averaged_index_kl(group.readers, kScale, group.indexer, sets, chunk));
}

// The paper's Proposition 1: the gradients are equal, the values differ by what the indexer has no
// part in.
TEST(IndexLosses, MultiAndAverageHaveTheSameGradients) {
  at::manual_seed(7);
  for (const auto& sets : {at::Tensor(), some_sets(7)}) {
    const auto group = make_group();
    auto multi = learn_multi(group, sets, kSmall);
    auto average = learn_average(group, sets, kSmall);
    const double constant = (multi.kl - average.kl).item<double>();
    EXPECT_GT(constant, 1e-3);  // KL is convex: Jensen
    EXPECT_GT(average.gradients[0].abs().max().item<double>(), 1e-6);
    multi.kl = average.kl;
    expect_same(multi, average, 1e-13);

    const Group other{.readers = group.readers, .indexer = make_inputs(at::kDouble).indexer};
    const double again =
        (learn_multi(other, sets, kSmall).kl - learn_average(other, sets, kSmall).kl)
            .item<double>();
    EXPECT_NEAR(again, constant, 1e-12);
  }
}

TEST(IndexLosses, ChunksChangeNothing) {
  at::manual_seed(8);
  const auto group = make_group();
  for (const auto& sets : {at::Tensor(), some_sets(7)}) {
    expect_same(learn_average(group, sets, kWhole), learn_average(group, sets, kSmall), 1e-12);
  }
}

// [B, T, T]: whether query t sees key s.
at::Tensor visible_of(const at::Tensor& sets) {
  auto visible = at::zeros({kBatch, kTokens, kTokens}, at::kBool);
  for (std::int64_t b = 0; b < kBatch; ++b) {
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t i = 0; i < sets.size(2); ++i) {
        const auto s = sets[b][t][i].item<int>();
        if (s >= 0) visible[b][t][s] = true;
      }
    }
  }
  return visible;
}

// The definition written down with whole [T, T] matrices, for autograd.
TEST(IndexLosses, AverageIsItsDefinition) {
  at::manual_seed(9);
  const auto group = make_group();
  const auto sets = some_sets(7);
  const auto hidden = visible_of(sets).logical_not();
  const auto masked = [&](const at::Tensor& x, const at::Tensor& mask) {
    return x.masked_fill(mask, -std::numeric_limits<double>::infinity());
  };
  at::Tensor mass = at::zeros({kBatch, kTokens, kTokens}, at::kDouble);
  for (const auto& reader : group.readers) {
    const auto logits = at::einsum("bthd,bshd->bhts", {reader.q.detach(), reader.k.detach()});
    mass = mass + at::softmax(masked(logits * kScale, hidden.unsqueeze(1)), -1).mean(1) / 3.0;
  }
  const auto& indexer = group.indexer;
  const auto products = at::einsum("bthd,bsd->bths", {indexer.q, indexer.keys}).relu();
  const auto scores = at::einsum("bth,bths->bts", {indexer.weights, products});
  const auto log_q = at::log_softmax(masked(scores, hidden), -1).masked_fill(hidden, 0);
  const auto kl = (at::xlogy(mass, mass) - mass * log_q).sum(-1).mean();
  expect_same(learn(indexer, kl), learn_average(group, sets, kSmall), 1e-12);
}

TEST(IndexLosses, AttentionAloneIsTheAttentionOfTheWalkThatLearns) {
  at::manual_seed(10);
  const auto inputs = make_inputs(at::kDouble);
  const auto grad = at::randn({kBatch, kTokens, kHeads, kValueDim}, at::kDouble);
  const auto sets = some_sets(7);
  const auto both = run(inputs, sets, kSmall, grad, 0.0);
  const auto alone = set_attention(inputs.attention, kScale, sets, kSmall);
  EXPECT_TRUE(alone.detach().equal(both.out));
  (alone * grad).sum().backward();
  const auto& a = inputs.attention;
  const at::Tensor inputs_of_attention[] = {a.q, a.k, a.v};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(inputs_of_attention[i].grad().equal(both.gradients[i]));
  }
}

TEST(IndexerAttention, OwnSetsAreCausalAndBestFirstOfTheirSequence) {
  at::manual_seed(6);
  const auto inputs = make_inputs(at::kFloat);
  constexpr std::int64_t kTopK = 5;
  const auto sets = select_own_sets(inputs.indexer, kTopK);
  ASSERT_EQ(sets.sizes(), at::IntArrayRef({kBatch, kTokens, kTopK}));
  for (std::int64_t b = 0; b < kBatch; ++b) {
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const auto row = sets[b][t];
      EXPECT_EQ((row >= 0).sum().item<std::int64_t>(), std::min(kTopK, t + 1));
      EXPECT_LE(row.max().item<std::int64_t>(), t);
      // Each selected score is at least every other's.
      const auto& i = inputs.indexer;
      const auto products = at::matmul(i.q[b][t], i.keys[b].narrow(0, 0, t + 1).t()).relu();
      const auto scores = at::matmul(i.weights[b][t], products).detach();
      auto others = scores.clone();
      const auto chosen = row.narrow(0, 0, std::min(kTopK, t + 1)).to(at::kLong);
      const auto worst = scores.index_select(0, chosen).min().item<float>();
      others.index_fill_(0, chosen, -1e30);
      EXPECT_GE(worst, others.max().item<float>() - 1e-5f);
    }
  }
}

}  // namespace
}  // namespace indexcache
