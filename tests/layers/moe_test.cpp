#include "indexcache/layers/moe.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace indexcache {
namespace {

constexpr std::int64_t kTokens = 11, kHidden = 6, kExperts = 8, kWidth = 5;

MoeWeights random_weights() {
  return {.router = at::randn({kExperts, kHidden}),
          .selection_bias = at::randn({kExperts}) - 1.0,  // many choices below zero (spec T9)
          .experts_gate_up = at::randn({kExperts, 2 * kWidth, kHidden}),
          .experts_down = at::randn({kExperts, kHidden, kWidth}),
          .shared = {.gate = at::randn({kWidth, kHidden}),
                     .up = at::randn({kWidth, kHidden}),
                     .down = at::randn({kHidden, kWidth})}};
}

double dot(const at::Tensor& row, const std::vector<double>& x) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += row[i].item<double>() * x[i];
  return sum;
}

std::vector<double> to_vector(const at::Tensor& x) {
  const auto wide = x.to(at::kDouble).contiguous();
  return {wide.data_ptr<double>(), wide.data_ptr<double>() + wide.numel()};
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

// down(silu(gate x) * up x) added to y, times scale.
void add_mlp(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
             const std::vector<double>& x, double scale, std::vector<double>& y) {
  std::vector<double> inner(gate.size(0));
  for (std::size_t i = 0; i < inner.size(); ++i) inner[i] = silu(dot(gate[i], x)) * dot(up[i], x);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += scale * dot(down[i], inner);
}

// Spec section 2.5 for one token: the chosen experts, best first, and their weights.
std::vector<std::pair<int, double>> route(const std::vector<double>& x, const MoeWeights& w,
                                          const MoeShape& shape) {
  std::vector<double> score(kExperts), choice(kExperts);
  for (int e = 0; e < kExperts; ++e) {
    score[e] = 1.0 / (1.0 + std::exp(-dot(w.router[e], x)));
    choice[e] = score[e] + w.selection_bias[e].item<double>();
  }
  const int group_size = static_cast<int>(kExperts / shape.num_groups);
  std::vector<std::pair<double, int>> groups;
  for (int g = 0; g < shape.num_groups; ++g) {
    std::vector<double> members(choice.begin() + g * group_size,
                                choice.begin() + (g + 1) * group_size);
    std::sort(members.rbegin(), members.rend());
    groups.push_back({members[0] + (group_size > 1 ? members[1] : 0.0), g});
  }
  std::sort(groups.rbegin(), groups.rend());
  for (int g = static_cast<int>(shape.topk_groups); g < shape.num_groups; ++g) {
    for (int e = 0; e < group_size; ++e) {
      choice[groups[g].second * group_size + e] = -std::numeric_limits<double>::infinity();
    }
  }
  std::vector<int> order(kExperts);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return choice[a] > choice[b]; });
  order.resize(shape.experts_per_token);
  double sum = 0;
  for (const int e : order) sum += score[e];
  std::vector<std::pair<int, double>> chosen;
  for (const int e : order) {
    chosen.push_back(
        {e, score[e] / (shape.norm_topk_prob ? sum : 1.0) * shape.routed_scaling_factor});
  }
  return chosen;
}

class Moe : public testing::TestWithParam<MoeShape> {};

TEST_P(Moe, MatchesTheScalarDefinition) {
  const auto shape = GetParam();
  const auto weights = random_weights();
  const auto x = at::randn({kTokens, kHidden});
  at::Tensor load;
  const auto y = moe_forward(x, weights, shape, &load);
  std::vector<std::int64_t> expected_load(kExperts);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const auto token = to_vector(x[t]);
    std::vector<double> expected(kHidden);
    for (const auto& [e, weight] : route(token, weights, shape)) {
      const auto gate_up = weights.experts_gate_up[e];
      add_mlp(gate_up.narrow(0, 0, kWidth), gate_up.narrow(0, kWidth, kWidth),
              weights.experts_down[e], token, weight, expected);
      ++expected_load[e];
    }
    add_mlp(weights.shared.gate, weights.shared.up, weights.shared.down, token, 1.0, expected);
    const auto found = to_vector(y[t]);
    for (std::int64_t i = 0; i < kHidden; ++i) {
      // Sums of at most 6 x 5 x 3 products of unit normals in fp32.
      EXPECT_NEAR(found[i], expected[i], 2e-4 * (1.0 + std::abs(expected[i]))) << t << " " << i;
    }
  }
  for (int e = 0; e < kExperts; ++e) EXPECT_EQ(load[e].item<std::int64_t>(), expected_load[e]);
}

INSTANTIATE_TEST_SUITE_P(Routers, Moe,
                         testing::Values(MoeShape{.num_experts = kExperts, .experts_per_token = 2},
                                         MoeShape{.num_experts = kExperts,
                                                  .experts_per_token = 3,
                                                  .routed_scaling_factor = 2.5,
                                                  .norm_topk_prob = false},
                                         MoeShape{.num_experts = kExperts,
                                                  .experts_per_token = 3,
                                                  .num_groups = 4,
                                                  .topk_groups = 2,
                                                  .routed_scaling_factor = 2.5}));

TEST(MoeForward, ExpertsWithoutTokensAreLeftOut) {
  auto weights = random_weights();
  weights.selection_bias = at::tensor({9.0f, 9.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f});
  weights.experts_gate_up[7].fill_(std::numeric_limits<float>::quiet_NaN());
  at::Tensor load;
  const MoeShape shape{.num_experts = kExperts, .experts_per_token = 2};
  const auto y = moe_forward(at::randn({kTokens, kHidden}), weights, shape, &load);
  EXPECT_FALSE(y.isnan().any().item<bool>());
  EXPECT_EQ(load[0].item<std::int64_t>(), kTokens);
  EXPECT_EQ(load[7].item<std::int64_t>(), 0);
}

TEST(MoeForward, BatchedEqualsFlat) {
  const auto weights = random_weights();
  const MoeShape shape{.num_experts = kExperts, .experts_per_token = 2};
  const auto x = at::randn({2, kTokens, kHidden});
  EXPECT_TRUE(moe_forward(x, weights, shape)
                  .allclose(moe_forward(x.flatten(0, 1), weights, shape).view_as(x), 1e-5, 1e-5));
}

}  // namespace
}  // namespace indexcache
