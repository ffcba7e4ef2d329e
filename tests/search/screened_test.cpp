#include "indexcache/search/screened.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "indexcache/base/error.h"
#include "indexcache/search/search.h"
#include "search/recorded_calls.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using indexcache::testing::RecordedCalls;
using indexcache::testing::thrown;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

IncreaseMatrix filled(int num_layers, const std::function<double(int, int)>& entry) {
  IncreaseMatrix increases(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (int source = 0; source < layer; ++source) increases[layer].push_back(entry(layer, source));
  }
  return increases;
}

std::vector<int> all_layers(int num_layers) {
  std::vector<int> layers;
  for (int layer = 0; layer < num_layers; ++layer) layers.push_back(layer);
  return layers;
}

double cost(const IncreaseMatrix& increases, const Pattern& pattern) {
  double sum = 0;
  for (int layer = 0; layer < pattern.num_layers(); ++layer) {
    if (!pattern.is_full(layer)) sum += increases[layer][pattern.source(layer)];
  }
  return sum;
}

// By exhaustion: the lowest cost of `keep` Full layers out of `allowed`.
double lowest_cost(const IncreaseMatrix& increases, const std::vector<int>& allowed, int keep) {
  double lowest = std::numeric_limits<double>::infinity();
  for (unsigned chosen = 1; chosen < 1u << allowed.size(); chosen += 2) {  // always layer 0
    std::vector<int> full;
    for (std::size_t i = 0; i < allowed.size(); ++i) {
      if (chosen >> i & 1) full.push_back(allowed[i]);
    }
    if (static_cast<int>(full.size()) != keep) continue;
    double sum = 0;
    for (int layer = 1; layer < std::ssize(increases); ++layer) {
      if (std::ranges::find(full, layer) != full.end()) continue;
      double best = std::numeric_limits<double>::infinity();
      for (const int source : full) {
        if (source < layer) best = std::min(best, increases[layer][source]);
      }
      sum += best;
    }
    lowest = std::min(lowest, sum);
  }
  return lowest;
}

// What the header claims: never below the optimum, and nearly always at it. One matrix without any
// structure, one with negative entries, one whose layers drift in what they look for.
TEST(LeastIncreasePatterns, AreTheBestOfAllSubsetsInNearlyAllCases) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  int optimal = 0, all = 0;
  for (int round = 0; round < 120; ++round) {
    const int num_layers = 1 + round % 11;
    std::vector<double> taste = {0}, weight;
    for (int layer = 0; layer < num_layers; ++layer) {
      taste.push_back(taste.back() + normal(random));
      weight.push_back(std::exp(normal(random)));
    }
    const auto increases = filled(num_layers, [&](int layer, int source) {
      if (round % 3 == 0) return uniform(random);
      if (round % 3 == 1) return normal(random);
      return weight[layer] * std::pow(taste[layer] - taste[source], 2);
    });
    std::vector<int> allowed = {0};
    for (int layer = 1; layer < num_layers; ++layer) {
      if (round < 60 || random() % 3 > 0) allowed.push_back(layer);
    }
    int keep = static_cast<int>(allowed.size());
    for (const Pattern& pattern : least_increase_patterns(increases, allowed, 1)) {
      ASSERT_EQ(pattern.num_full(), --keep);
      for (const int layer : pattern.full_layers()) {
        EXPECT_NE(std::ranges::find(allowed, layer), allowed.end());
      }
      const double found = cost(increases, pattern);
      const double lowest = lowest_cost(increases, allowed, keep);
      EXPECT_GE(found, lowest - 1e-9);
      optimal += found <= lowest + 1e-9;
      ++all;
    }
    EXPECT_EQ(keep, 1);
  }
  EXPECT_GT(all, 400);
  EXPECT_GE(optimal, all * 98 / 100) << optimal << " of " << all;
}

TEST(LeastIncreasePatterns, TakeBackALayerThatRemovalLetGo) {
  // Layer 1 goes before 2 and 3, which serve later layers better; with one layer beside 0, it is the
  // one that serves all.
  auto increases = filled(5, [](int, int) { return 9.0; });
  increases[1][0] = 0.5;  // cheapest to remove
  increases[2][0] = 3.0;
  increases[2][1] = 0.75;
  increases[3] = {8.0, 1.0, 0.5};
  increases[4] = {8.0, 1.0, 4.0, 0.25};
  const auto patterns = least_increase_patterns(increases, all_layers(5), 1);
  ASSERT_EQ(patterns.size(), 4u);
  EXPECT_EQ(patterns[0].str(), "FFFFS");  // 0.25
  EXPECT_EQ(patterns[1].str(), "FSFFS");  // 0.75
  EXPECT_EQ(patterns[2].str(), "FFSSS");  // 2.75; without layer 1, 3.75
  EXPECT_EQ(patterns[3].str(), "FSSSS");
}

TEST(LeastIncreasePatterns, ReadTheBestSourceNotTheNearest) {
  // Even layers agree with even ones, odd with odd.
  const auto increases =
      filled(6, [](int layer, int source) { return (layer - source) % 2 == 0 ? 0.0 : 1.0; });
  const auto patterns = least_increase_patterns(increases, all_layers(6), 2);
  EXPECT_EQ(patterns.back().str(), "-1,-1,0,1,0,1");
}

TEST(LeastIncreasePatterns, BreakTiesByTheLowerLayerAndSource) {
  const auto flat = filled(5, [](int, int) { return 0.5; });
  const auto patterns = least_increase_patterns(flat, all_layers(5), 2);
  ASSERT_EQ(patterns.size(), 3u);
  EXPECT_EQ(patterns[0].str(), "FSFFF");
  EXPECT_EQ(patterns[1].str(), "FSSFF");
  EXPECT_EQ(patterns[2].str(), "FSSSF");
}

TEST(LeastIncreasePatterns, RefuseOtherShapesAndWhatIsNotFinite) {
  auto increases = filled(4, [](int, int) { return 0.5; });
  increases[3][2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(
      thrown<InputError>([&] {
        least_increase_patterns(increases, {0, 1, 2, 3}, 2);
      }),
      HasSubstr("increase of the loss when layer 3 reads layer 2: expected a finite number"));
  EXPECT_EQ(least_increase_patterns(increases, {0, 1, 3}, 2).size(), 1u);  // not read
  increases[2].push_back(0);
  EXPECT_THAT(thrown<InputError>([&] {
                least_increase_patterns(increases, {0, 1}, 2);
              }),
              HasSubstr("increases of layer 2: expected 2 entries, found 3"));
}

// --- The strategy.

SearchOptions options_for(const Pattern& start, std::optional<int> keep = {}) {
  SearchOptions options;
  options.strategy = Strategy::kScreened;
  options.start = start;
  options.keep = keep;
  options.increases = filled(start.num_layers(), [](int layer, int source) {
    return layer + 0.125 * (layer - source);  // the later, the more it matters
  });
  return options;
}

TEST(SearchByScreening, MeasuresThePatternOfEveryBudgetInOneCall) {
  RecordedCalls calls;
  std::vector<std::int64_t> evaluations;
  const auto result =
      search_patterns(options_for(Pattern::full(5)), calls.evaluate(),
                      [&](const SearchProgress& step) { evaluations.push_back(step.evaluations); });
  EXPECT_THAT(calls.patterns,
              ElementsAre(ElementsAre("FFFFF"), ElementsAre("FSFFF", "FSSFF", "FSSSF", "FSSSS")));
  EXPECT_EQ(result.evaluations, 4);
  EXPECT_THAT(evaluations, ElementsAre(0, 4, 4, 4, 4));
  ASSERT_EQ(result.budgets.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(result.budgets[i].num_full, 4 - i);
    EXPECT_EQ(result.budgets[i].pattern.str(), calls.patterns[1][i]);
    EXPECT_EQ(result.budgets[i].losses.mean(), i + 1);  // measured, not estimated
  }
}

TEST(SearchByScreening, KeepsToTheFullLayersOfTheStartSchedule) {
  RecordedCalls calls;
  search_patterns(options_for(Pattern::parse("-1,0,-1,0,-1,2,-1,0", 8), 2), calls.evaluate());
  ASSERT_EQ(calls.patterns.size(), 2u);
  // Layers that were Shared choose their sources anew.
  EXPECT_THAT(calls.patterns[1], ElementsAre("FSSSFSFS", "FSSSSSFS"));
}

TEST(SearchByScreening, RefusesAMatrixOfAnotherModel) {
  RecordedCalls calls;
  auto options = options_for(Pattern::full(5));
  options.increases.pop_back();
  EXPECT_THAT(thrown<InputError>([&] { search_patterns(options, calls.evaluate()); }),
              HasSubstr("increases: expected 5 layers, found 4"));
  options = options_for(Pattern::full(5), 5);
  EXPECT_THAT(thrown<InputError>([&] { search_patterns(options, calls.evaluate()); }),
              HasSubstr("Full layers to keep"));
}

}  // namespace
}  // namespace indexcache
