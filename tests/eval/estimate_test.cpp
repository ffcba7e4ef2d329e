#include "indexcache/eval/estimate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "indexcache/base/random.h"

namespace indexcache {
namespace {

TEST(EstimateTest, EqualWeightsGiveTheMeanAndItsStandardError) {
  const std::vector<double> values = {2, 4, 9}, ones = {1, 1, 1};
  const Estimate estimate = ratio(values, ones);
  EXPECT_DOUBLE_EQ(estimate.value, 5);
  // Sample variance (9 + 1 + 16) / 2 = 13; the mean's is 13 / 3.
  EXPECT_DOUBLE_EQ(estimate.standard_error, std::sqrt(13.0 / 3));
}

TEST(EstimateTest, ProportionsHaveTheBinomialError) {
  std::vector<double> right(200, 0.0), ones(200, 1.0);
  for (int i = 0; i < 150; ++i) right[static_cast<std::size_t>(i)] = 1;
  const Estimate estimate = ratio(right, ones);
  EXPECT_DOUBLE_EQ(estimate.value, 0.75);
  EXPECT_NEAR(estimate.standard_error, std::sqrt(0.75 * 0.25 / 199), 1e-12);
}

TEST(EstimateTest, OneItemHasNoError) {
  const std::vector<double> value = {3}, weight = {2};
  EXPECT_DOUBLE_EQ(ratio(value, weight).value, 1.5);
  EXPECT_TRUE(std::isnan(ratio(value, weight).standard_error));
}

TEST(EstimateTest, TheErrorIsWhatRepetitionShows) {
  // Items of different sizes; the spread of many repetitions is the oracle.
  std::mt19937_64 random(3);
  std::vector<double> ratios;
  double mean_error = 0;
  const int repetitions = 2000;
  for (int r = 0; r < repetitions; ++r) {
    std::vector<double> amounts, weights;
    for (int i = 0; i < 40; ++i) {
      weights.push_back(50 + 200 * draw_unit(random));
      amounts.push_back(weights.back() * (2 + draw_unit(random)));
    }
    const Estimate estimate = ratio(amounts, weights);
    ratios.push_back(estimate.value);
    mean_error += estimate.standard_error / repetitions;
  }
  double mean = 0, variance = 0;
  for (const double value : ratios) mean += value / repetitions;
  for (const double value : ratios) variance += (value - mean) * (value - mean) / repetitions;
  EXPECT_NEAR(mean, 2.5, 0.01);
  EXPECT_NEAR(mean_error / std::sqrt(variance), 1.0, 0.07);
}

TEST(EstimateTest, DifferencesArePaired) {
  // Items vary by hundreds, the difference is the same in each: it is known exactly.
  const std::vector<double> base = {100, 700, 300, 500}, weights = {10, 70, 30, 50};
  std::vector<double> other = base;
  for (std::size_t i = 0; i < base.size(); ++i) other[i] += weights[i] * 0.25;
  const Estimate difference = ratio_difference(other, base, weights);
  EXPECT_DOUBLE_EQ(difference.value, 0.25);
  EXPECT_NEAR(difference.standard_error, 0, 1e-12);
  const Estimate none = ratio_difference(base, base, weights);
  EXPECT_EQ(none.value, 0);
  EXPECT_EQ(none.standard_error, 0);
}

}  // namespace
}  // namespace indexcache
