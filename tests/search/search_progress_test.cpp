// What a search says of its progress: what time left is computed from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "indexcache/search/search.h"
#include "search/toy_loss.h"

namespace indexcache {
namespace {

SearchOptions options_of(Strategy strategy, Pattern start, std::optional<int> keep = {}) {
  SearchOptions options;
  options.strategy = strategy;
  options.start = std::move(start);
  options.keep = keep;
  return options;
}

// The evaluations of a search of 12 layers, and how many it expected at each of its reports.
struct Expectation {
  std::int64_t evaluations = 0;
  std::vector<std::int64_t> expected;
};

Expectation expectation_of(const SearchOptions& options) {
  const ToyLoss toy(12, 2, 5);
  std::vector<SearchProgress> steps;
  const auto result = search_patterns(
      options,
      [&](const Pattern&, const std::vector<Pattern>& patterns) {
        std::vector<Losses> losses;
        for (const Pattern& pattern : patterns) losses.push_back(toy(pattern));
        return losses;
      },
      [&](const SearchProgress& step) { steps.push_back(step); });
  EXPECT_EQ(steps.front().evaluations, 0);
  EXPECT_EQ(steps.front().loss, result.start.mean());
  EXPECT_EQ(steps.back().evaluations, result.evaluations);
  EXPECT_EQ(steps.back().evaluations_left, 0) << strategy_name(options.strategy);
  Expectation expectation{result.evaluations, {}};
  for (const SearchProgress& step : steps) {
    expectation.expected.push_back(step.evaluations + step.evaluations_left);
  }
  return expectation;
}

TEST(SearchProgress, KnowsFromTheStartHowManyEvaluationsExactStrategiesTake) {
  for (const auto strategy :
       {Strategy::kGreedy, Strategy::kForward, Strategy::kBlocked, Strategy::kRouted}) {
    for (const char* start : {"FFFFFFFFFFFF", "FFSFFFSFFSFF", "-1,-1,-1,0,-1,-1,-1,2,-1,-1,2,-1"}) {
      for (const int keep : {3, 6}) {
        auto options = options_of(strategy, Pattern::parse(start, 12), keep);
        options.num_blocks = 3;
        const auto found = expectation_of(options);
        EXPECT_THAT(found.expected, ::testing::Each(found.evaluations))
            << strategy_name(strategy) << " from " << start << " to " << keep;
      }
    }
  }
}

TEST(SearchProgress, KnowsThatSimilarityTakesOneEvaluationABudget) {
  auto options = options_of(Strategy::kSimilarity, Pattern::full(12), 3);
  for (int layer = 0; layer < 12; ++layer) options.similarity.emplace_back(layer, 0.5);
  const auto found = expectation_of(options);
  EXPECT_EQ(found.evaluations, 9);
  EXPECT_THAT(found.expected, ::testing::Each(found.evaluations));
}

TEST(SearchProgress, EstimatesTheEvaluationsOfTheOtherStrategies) {
  for (const auto strategy : {Strategy::kLazy, Strategy::kRoutedLazy}) {
    for (const int keep : {1, 4}) {
      const auto found = expectation_of(options_of(strategy, Pattern::full(12), keep));
      for (const auto expected : found.expected) {
        EXPECT_NEAR(expected, found.evaluations, 0.3 * found.evaluations)
            << strategy_name(strategy);
      }
    }
  }
  const auto descent = expectation_of(options_of(Strategy::kDescent, Pattern::uniform(3, 12)));
  EXPECT_GT(descent.expected.size(), 1 + 2 * 8u);  // a report a layer
  for (const auto expected : descent.expected) {
    EXPECT_NEAR(expected, descent.evaluations, 0.5 * descent.evaluations);
  }
}

}  // namespace
}  // namespace indexcache
