#include "indexcache/layers/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

namespace indexcache {
namespace {

constexpr std::int64_t kTokens = 5, kHeads = 3, kDim = 8, kFirst = 7;

RopeFrequencies frequencies(double amplitude = 1.0) {
  return {.inv_freq = at::tensor({1.0f, 0.3f, 0.05f, 0.001f}), .amplitude = amplitude};
}

// The rotation of spec section 2.2 for one vector, by index arithmetic in double.
std::vector<double> rotate(const float* x, std::int64_t position, RopeStyle style,
                           double amplitude) {
  const auto table = frequencies();
  std::vector<double> out(kDim);
  for (int i = 0; i < kDim / 2; ++i) {
    const double angle = static_cast<double>(position) * table.inv_freq[i].item<float>();
    const int a = style == RopeStyle::kInterleaved ? 2 * i : i;
    const int b = style == RopeStyle::kInterleaved ? 2 * i + 1 : i + kDim / 2;
    out[a] = amplitude * (x[a] * std::cos(angle) - x[b] * std::sin(angle));
    out[b] = amplitude * (x[b] * std::cos(angle) + x[a] * std::sin(angle));
  }
  return out;
}

class Rope : public testing::TestWithParam<RopeStyle> {};

TEST_P(Rope, MatchesTheFormulaForEveryHeadAndToken) {
  const double amplitude = 1.5;
  const auto x = at::rand({kTokens, kHeads, kDim});
  const auto table = make_rope_table(frequencies(amplitude), kFirst, kTokens);
  const auto y = apply_rope(x, table, GetParam(), RopeLayout::kTokensHeads);
  ASSERT_EQ(y.sizes(), x.sizes());
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t h = 0; h < kHeads; ++h) {
      const auto expected =
          rotate(x[t][h].const_data_ptr<float>(), kFirst + t, GetParam(), amplitude);
      for (std::int64_t d = 0; d < kDim; ++d) {
        // fp32 angles of up to 12 radians: an ulp of the angle, one of the product, amplitude 1.5.
        EXPECT_NEAR(y[t][h][d].item<float>(), expected[d], 4e-6) << t << " " << h << " " << d;
      }
    }
  }
}

TEST_P(Rope, WithoutHeadsAndOnASliceEqualsTheHeadForm) {
  const auto x = at::rand({2, kTokens, kDim + 3});
  const auto part = x.narrow(-1, 3, kDim);  // odd offset and strides
  const auto table = make_rope_table(frequencies(), kFirst, kTokens);
  const auto y = apply_rope(part, table, GetParam(), RopeLayout::kTokens);
  const auto with_heads =
      apply_rope(part.unsqueeze(-2), table, GetParam(), RopeLayout::kTokensHeads).squeeze(-2);
  EXPECT_TRUE(y.equal(with_heads));
}

TEST_P(Rope, KeepsDotProductsOfEqualDistance) {
  const auto q = at::rand({1, kDim}), k = at::rand({1, kDim});
  const auto dot = [&](std::int64_t tq, std::int64_t tk) {
    const auto rq =
        apply_rope(q, make_rope_table(frequencies(), tq, 1), GetParam(), RopeLayout::kTokens);
    const auto rk =
        apply_rope(k, make_rope_table(frequencies(), tk, 1), GetParam(), RopeLayout::kTokens);
    return (rq * rk).sum().item<float>();
  };
  EXPECT_NEAR(dot(3, 1), dot(103, 101), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Styles, Rope,
                         testing::Values(RopeStyle::kInterleaved, RopeStyle::kHalfSplit));

TEST(RopeStyles, Differ) {
  const auto x = at::rand({kTokens, kDim});
  const auto table = make_rope_table(frequencies(), 1, kTokens);
  EXPECT_FALSE(apply_rope(x, table, RopeStyle::kInterleaved, RopeLayout::kTokens)
                   .allclose(apply_rope(x, table, RopeStyle::kHalfSplit, RopeLayout::kTokens)));
}

}  // namespace
}  // namespace indexcache
