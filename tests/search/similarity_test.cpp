#include "indexcache/search/similarity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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

SimilarityMatrix filled(int num_layers, const std::function<double(int, int)>& entry) {
  SimilarityMatrix similarity(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (int source = 0; source < layer; ++source) {
      similarity[layer].push_back(entry(layer, source));
    }
  }
  return similarity;
}

double similarity_sum(const SimilarityMatrix& similarity, const Pattern& pattern) {
  double sum = 0;
  for (int layer = 0; layer < pattern.num_layers(); ++layer) {
    if (!pattern.is_full(layer)) sum += similarity[layer][pattern.source(layer)];
  }
  return sum;
}

std::vector<int> reversed(std::vector<int> layers) {
  std::ranges::reverse(layers);
  return layers;
}

// By exhaustion; of equal sums the one whose Full layers, last first, are lexicographically lowest.
Pattern exhaustive(const SimilarityMatrix& similarity, const std::vector<int>& allowed, int keep) {
  const int num_layers = static_cast<int>(similarity.size());
  Pattern best = Pattern::full(1);
  double highest = -std::numeric_limits<double>::infinity();
  for (unsigned chosen = 1; chosen < 1u << allowed.size(); chosen += 2) {  // always layer 0
    std::vector<int> full;
    for (std::size_t i = 0; i < allowed.size(); ++i) {
      if (chosen >> i & 1) full.push_back(allowed[i]);
    }
    if (static_cast<int>(full.size()) != keep) continue;
    const auto pattern = Pattern::nearest(full, num_layers);
    const double sum = similarity_sum(similarity, pattern);
    if (sum > highest || (sum == highest && reversed(full) < reversed(best.full_layers()))) {
      highest = sum;
      best = pattern;
    }
  }
  return best;
}

TEST(MostSimilarPattern, IsTheBestOfAllSubsets) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (const int num_layers : {1, 2, 5, 11, 13}) {
    for (int round = 0; round < 5; ++round) {
      const auto similarity = filled(num_layers, [&](int, int) { return uniform(random); });
      std::vector<int> allowed = {0};
      for (int layer = 1; layer < num_layers; ++layer) {
        if (round < 3 || random() % 3 > 0) allowed.push_back(layer);
      }
      for (int keep = 1; keep <= static_cast<int>(allowed.size()); ++keep) {
        const auto pattern = most_similar_pattern(similarity, allowed, keep);
        EXPECT_EQ(pattern, exhaustive(similarity, allowed, keep)) << num_layers << ", " << keep;
        EXPECT_TRUE(pattern.is_nearest());
        EXPECT_EQ(pattern.num_full(), keep);
      }
    }
  }
}

TEST(MostSimilarPattern, TiesGoToTheLowestLastFullLayer) {
  // Quarters add up exactly in any order, so that equal sums are equal bits.
  std::mt19937_64 random(2);
  for (int round = 0; round < 20; ++round) {
    const auto similarity =
        filled(10, [&](int, int) { return 0.25 * static_cast<double>(random() % 3); });
    const std::vector<int> allowed = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    for (int keep = 1; keep <= 10; ++keep) {
      EXPECT_EQ(most_similar_pattern(similarity, allowed, keep),
                exhaustive(similarity, allowed, keep));
    }
  }
  const auto flat = filled(6, [](int, int) { return 0.5; });
  EXPECT_EQ(most_similar_pattern(flat, {0, 1, 2, 3, 4, 5}, 3).str(), "FFFSSS");
  EXPECT_EQ(most_similar_pattern(flat, {0, 2, 5}, 2).str(), "FSFSSS");
}

TEST(MostSimilarPattern, FindsWhereLayersChangeTheirMind) {
  // Layers 0-2, 3-6 and 7-9 agree among themselves only.
  const auto group = [](int layer) { return layer < 3 ? 0 : layer < 7 ? 1 : 2; };
  const auto similarity =
      filled(10, [&](int layer, int source) { return group(layer) == group(source) ? 0.9 : 0.1; });
  const std::vector<int> allowed = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_EQ(most_similar_pattern(similarity, allowed, 3).str(), "FSSFSSSFSS");
  EXPECT_EQ(most_similar_pattern(similarity, allowed, 2).str(), "FSSFSSSSSS");
  EXPECT_EQ(most_similar_pattern(similarity, allowed, 1).str(), "FSSSSSSSSS");
}

TEST(MostSimilarPattern, RefusesOtherShapesAndWhatIsNotFinite) {
  auto similarity = filled(4, [](int, int) { return 0.5; });
  similarity[3][2] = std::numeric_limits<double>::quiet_NaN();
  const auto message = thrown<InputError>([&] {
    most_similar_pattern(similarity, {0, 1, 2, 3}, 2);
  });
  EXPECT_THAT(message, HasSubstr("similarity of layers 3 and 2"));
  EXPECT_EQ(most_similar_pattern(similarity, {0, 1, 3}, 3).str(), "FFSF");  // not read
  similarity[2].push_back(0);
  EXPECT_THAT(thrown<InputError>([&] {
                most_similar_pattern(similarity, {0, 1}, 2);
              }),
              HasSubstr("expected 2 entries, found 3"));
}

// --- The strategy.

SearchOptions options_for(const Pattern& start, std::optional<int> keep = {}) {
  SearchOptions options;
  options.strategy = Strategy::kSimilarity;
  options.start = start;
  options.keep = keep;
  // The nearer the more similar: the lowest sum of distances wins. Budgets are not nested.
  options.similarity = filled(start.num_layers(),
                              [](int layer, int source) { return 1 - 0.125 * (layer - source); });
  return options;
}

TEST(SearchBySimilarity, MeasuresThePatternOfEveryBudgetInOneCall) {
  RecordedCalls calls;
  std::vector<std::int64_t> evaluations;
  const auto result =
      search_patterns(options_for(Pattern::full(5)), calls.evaluate(),
                      [&](const SearchProgress& step) { evaluations.push_back(step.evaluations); });
  EXPECT_THAT(calls.patterns,
              ElementsAre(ElementsAre("FFFFF"), ElementsAre("FFFFS", "FFSFS", "FSFSS", "FSSSS")));
  EXPECT_EQ(result.evaluations, 4);
  EXPECT_THAT(evaluations, ElementsAre(0, 4, 4, 4, 4));
  ASSERT_EQ(result.budgets.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(result.budgets[i].num_full, 4 - i);
    EXPECT_EQ(result.budgets[i].pattern.str(), calls.patterns[1][i]);
    EXPECT_EQ(result.budgets[i].losses.mean(), i + 1);
  }
}

TEST(SearchBySimilarity, KeepsToTheFullLayersOfTheStartSchedule) {
  RecordedCalls calls;
  search_patterns(options_for(Pattern::parse("-1,0,-1,0,-1,2,-1,0", 8), 2), calls.evaluate());
  ASSERT_EQ(calls.patterns.size(), 2u);
  EXPECT_THAT(calls.patterns[1], ElementsAre("FSFSFSSS", "FSSSFSSS"));
}

TEST(SearchBySimilarity, RefusesAMatrixOfAnotherModel) {
  RecordedCalls calls;
  auto options = options_for(Pattern::full(5));
  options.similarity.pop_back();
  EXPECT_THAT(thrown<InputError>([&] { search_patterns(options, calls.evaluate()); }),
              HasSubstr("similarity: expected 5 layers, found 4"));
  options = options_for(Pattern::full(5), 5);
  EXPECT_THAT(thrown<InputError>([&] { search_patterns(options, calls.evaluate()); }),
              HasSubstr("Full layers to keep"));
}

}  // namespace
}  // namespace indexcache
