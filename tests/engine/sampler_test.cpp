#include "indexcache/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "indexcache/base/error.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::thrown;

std::vector<int> histogram(const SamplingOptions& options, const std::vector<float>& logits,
                           int draws) {
  Sampler sampler(options);
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < draws; ++i) ++counts[static_cast<std::size_t>(sampler.sample(logits))];
  return counts;
}

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowerOfTwo) {
  Sampler sampler({});
  EXPECT_EQ(sampler.sample(std::vector<float>{-1, 3, 2}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{5, 1, 5}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-7}), 0);
}

TEST(SamplerTest, FrequenciesAreTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits = {1.0f, -0.5f, 2.0f, 0.0f};
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const int draws = 20000;
    const auto counts = histogram({.temperature = temperature}, logits, draws);
    double total = 0;
    for (const float logit : logits) total += std::exp(logit / temperature);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(logits[i] / temperature) / total;
      EXPECT_NEAR(counts[i], p * draws, 5 * std::sqrt(draws * p * (1 - p)))
          << "token " << i << " at temperature " << temperature;
    }
  }
}

TEST(SamplerTest, TopKAndTopPCutTheTailAndKeepTheProportions) {
  // Probabilities .4, .3, .2, .1 in another order.
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f),
                                     std::log(0.3f)};
  const int draws = 20000;
  const auto expect = [&](const SamplingOptions& options, const std::vector<double>& shares) {
    const auto counts = histogram(options, logits, draws);
    for (std::size_t i = 0; i < shares.size(); ++i) {
      EXPECT_NEAR(counts[i], shares[i] * draws, 5 * std::sqrt(draws * shares[i] * (1 - shares[i])))
          << "token " << i;
    }
  };
  expect({.temperature = 1, .top_k = 1}, {0, 1, 0, 0});
  expect({.temperature = 1, .top_k = 2}, {0, 4 / 7., 0, 3 / 7.});
  expect({.temperature = 1, .top_k = 9}, {.1, .4, .2, .3});
  expect({.temperature = 1, .top_p = 0.35}, {0, 1, 0, 0});
  expect({.temperature = 1, .top_p = 0.6}, {0, 4 / 7., 0, 3 / 7.});
  expect({.temperature = 1, .top_p = 0.8}, {0, 4 / 9., 2 / 9., 3 / 9.});
  // top_p is a share of what top_k leaves: .4 / .7 alone reaches .5.
  expect({.temperature = 1, .top_k = 2, .top_p = 0.5}, {0, 1, 0, 0});
}

TEST(SamplerTest, TiesAreCutFromTheHighTokens) {
  const auto counts = histogram({.temperature = 1, .top_k = 2}, {0, 1, 1, 1}, 1000);
  EXPECT_EQ(counts[0], 0);
  EXPECT_EQ(counts[3], 0);
  EXPECT_GT(counts[1], 400);
}

TEST(SamplerTest, TheSeedDecides) {
  const std::vector<float> logits(50, 0.0f);
  const auto draw = [&](std::uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.sample(logits));
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(SamplerTest, LargeLogitsDoNotOverflow) {
  EXPECT_EQ(histogram({.temperature = 0.01}, {3e38f, -3e38f, 0}, 50)[0], 50);
}

TEST(SamplerTest, WhatCannotBeSampledIsRefused) {
  const auto refused = [](const SamplingOptions& options) {
    return thrown<InputError>([&] { Sampler sampler(options); });
  };
  EXPECT_THAT(refused({.temperature = -1}), HasSubstr("temperature"));
  EXPECT_THAT(refused({.temperature = std::nan("")}), HasSubstr("temperature"));
  EXPECT_THAT(refused({.top_k = -1}), HasSubstr("top_k"));
  EXPECT_THAT(refused({.top_p = 0}), HasSubstr("top_p"));
  EXPECT_THAT(refused({.top_p = 1.5}), HasSubstr("top_p"));
  Sampler sampler({});
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    EXPECT_THAT(thrown<InputError>([&] {
                  sampler.sample(std::vector<float>{0, bad});
                }),
                HasSubstr("for token 1"));
  }
}

}  // namespace
}  // namespace indexcache
