#include "indexcache/layers/indexer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace indexcache {
namespace {

constexpr std::int64_t kTokens = 4, kHidden = 10, kQRank = 7;

TEST(Indexer, MatchesTheScalarDefinition) {
  const IndexerShape shape{.num_heads = 3,
                           .head_dim = 6,
                           .rope_head_dim = 4,
                           .top_k = 2,
                           .rope_style = RopeStyle::kHalfSplit};
  const IndexerWeights weights{.wq_b = at::randn({18, kQRank}),
                               .wk = at::randn({6, kHidden}),
                               .k_norm_weight = at::rand({6}) + 0.5,
                               .k_norm_bias = at::randn({6}),
                               .weights_proj = at::randn({3, kHidden})};
  const RopeFrequencies frequencies{.inv_freq = at::tensor({1.0f, 0.2f})};
  const auto x = at::randn({kTokens, kHidden});
  const auto q_latent = at::randn({kTokens, kQRank});
  const auto found =
      indexer_project(x, q_latent, weights, shape, make_rope_table(frequencies, 5, kTokens));

  const auto at2 = [](const at::Tensor& t, std::int64_t i, std::int64_t j) {
    return t[i][j].item<double>();
  };
  const auto rotate = [&](std::vector<double>& v, std::int64_t t) {
    const double inv_freq[] = {1.0, 0.2f};
    for (int i = 0; i < 2; ++i) {
      const double angle = static_cast<double>(5 + t) * inv_freq[i], a = v[i], b = v[i + 2];
      v[i] = a * std::cos(angle) - b * std::sin(angle);
      v[i + 2] = b * std::cos(angle) + a * std::sin(angle);
    }
  };
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t h = 0; h < 3; ++h) {
      std::vector<double> q(6);
      for (int d = 0; d < 6; ++d) {
        for (int i = 0; i < kQRank; ++i)
          q[d] += at2(weights.wq_b, h * 6 + d, i) * at2(q_latent, t, i);
      }
      rotate(q, t);
      for (int d = 0; d < 6; ++d) EXPECT_NEAR(found.q[t][h][d].item<double>(), q[d], 1e-5);
      double weight = 0;
      for (int i = 0; i < kHidden; ++i) weight += at2(weights.weights_proj, h, i) * at2(x, t, i);
      EXPECT_NEAR(found.weights[t][h].item<double>(), weight / std::sqrt(3.0 * 6.0), 1e-5);
    }
    std::vector<double> k(6);
    double mean = 0, variance = 0;
    for (int d = 0; d < 6; ++d) {
      for (int i = 0; i < kHidden; ++i) k[d] += at2(weights.wk, d, i) * at2(x, t, i);
      mean += k[d] / 6;
    }
    for (const double value : k) variance += (value - mean) * (value - mean) / 6;
    for (int d = 0; d < 6; ++d) {
      k[d] = (k[d] - mean) / std::sqrt(variance + 1e-6) * weights.k_norm_weight[d].item<double>() +
             weights.k_norm_bias[d].item<double>();
    }
    rotate(k, t);
    for (int d = 0; d < 6; ++d) EXPECT_NEAR(found.keys[t][d].item<double>(), k[d], 2e-5);
  }
}

TEST(Indexer, HeadWeightsStayFp32InABf16Model) {
  const IndexerShape shape{.num_heads = 2, .head_dim = 4, .rope_head_dim = 4, .top_k = 2};
  const IndexerWeights weights{.wq_b = at::randn({8, kQRank}).to(at::kBFloat16),
                               .wk = at::randn({4, kHidden}).to(at::kBFloat16),
                               .k_norm_weight = at::rand({4}),
                               .k_norm_bias = at::randn({4}),
                               .weights_proj = at::randn({2, kHidden})};
  const RopeFrequencies frequencies{.inv_freq = at::tensor({1.0f, 0.2f})};
  const auto found = indexer_project(at::randn({kTokens, kHidden}).to(at::kBFloat16),
                                     at::randn({kTokens, kQRank}).to(at::kBFloat16), weights, shape,
                                     make_rope_table(frequencies, 0, kTokens));
  EXPECT_EQ(found.weights.scalar_type(), at::kFloat);
  EXPECT_EQ(found.q.scalar_type(), at::kBFloat16);
  EXPECT_EQ(found.keys.scalar_type(), at::kBFloat16);
}

}  // namespace
}  // namespace indexcache
