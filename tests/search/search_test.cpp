#include "indexcache/search/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <optional>
#include <set>

#include "indexcache/base/error.h"
#include "search/toy_loss.h"

namespace indexcache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Evaluates by a function of one pattern and keeps what was asked.
struct Recorder {
  std::function<Losses(const Pattern&)> loss;
  std::vector<Pattern> asked;
  int calls = 0;

  Evaluate evaluate() {
    return [this](const Pattern&, const std::vector<Pattern>& patterns) {
      ++calls;
      std::vector<Losses> losses;
      for (const Pattern& pattern : patterns) {
        asked.push_back(pattern);
        losses.push_back(loss(pattern));
      }
      return losses;
    };
  }
};

Recorder additive(std::map<int, double> cost_of_sharing) {
  return {[=](const Pattern& pattern) {
            double loss = 1;
            for (const auto& [layer, cost] : cost_of_sharing) {
              if (!pattern.is_full(layer)) loss += cost;
            }
            return Losses{{loss, loss + 0.5}};
          },
          {},
          0};
}

SearchOptions options_for(Strategy strategy, Pattern start, std::optional<int> keep = {}) {
  SearchOptions options;
  options.strategy = strategy;
  options.start = std::move(start);
  options.keep = keep;
  return options;
}

std::vector<std::string> patterns_of(const SearchResult& result) {
  std::vector<std::string> patterns;
  for (const auto& budget : result.budgets) patterns.push_back(budget.pattern.str());
  return patterns;
}

TEST(Search, GreedyRemovesInOrderOfCost) {
  Recorder recorder = additive({{1, 0.3}, {2, 0.1}, {3, 0.4}, {4, 0.2}});
  const auto result =
      search_patterns(options_for(Strategy::kGreedy, Pattern::full(5)), recorder.evaluate());
  EXPECT_THAT(patterns_of(result), ElementsAre("FFSFF", "FFSFS", "FSSFS", "FSSSS"));
  EXPECT_EQ(result.evaluations, 5 * 4 / 2);
  EXPECT_DOUBLE_EQ(result.start.mean(), 1.25);
  EXPECT_DOUBLE_EQ(result.budgets.back().losses.mean(), 2.25);
}

TEST(Search, GreedyMeasuresEveryMoveOfEveryStepOnce) {
  const ToyLoss toy(12, 4, 1);
  Recorder recorder{toy, {}, 0};
  const auto result =
      search_patterns(options_for(Strategy::kGreedy, Pattern::full(12)), recorder.evaluate());
  EXPECT_EQ(result.evaluations, 12 * 11 / 2);
  EXPECT_EQ(recorder.asked.size(), result.evaluations + 1u);  // and the start schedule
  EXPECT_EQ(std::set(recorder.asked.begin(), recorder.asked.end()).size(), recorder.asked.size());
}

TEST(Search, TiesGoToTheLowerLayerThenTheLowerSource) {
  Recorder flat{[](const Pattern&) { return Losses{{1.0}}; }, {}, 0};
  for (const auto strategy : {Strategy::kGreedy, Strategy::kLazy}) {
    const auto result = search_patterns(options_for(strategy, Pattern::full(4)), flat.evaluate());
    EXPECT_THAT(patterns_of(result), ElementsAre("FSFF", "FSSF", "FSSS"));
  }
  for (const auto strategy : {Strategy::kRouted, Strategy::kRoutedLazy}) {
    auto start = Pattern::parse("FFFS", 4);
    const auto result = search_patterns(options_for(strategy, start), flat.evaluate());
    EXPECT_THAT(patterns_of(result), ElementsAre("FSFS", "FSSS"));
    start = Pattern::parse("FFFF", 4);  // layer 2 can read 0 or 1: no, 1 is gone first
    EXPECT_EQ(patterns_of(search_patterns(options_for(strategy, start, 3), flat.evaluate()))[0],
              "FSFF");
  }
  const auto forward =
      search_patterns(options_for(Strategy::kForward, Pattern::full(4)), flat.evaluate());
  EXPECT_THAT(patterns_of(forward), ElementsAre("FFFS", "FFSS", "FSSS"));
  const auto descent =
      search_patterns(options_for(Strategy::kDescent, Pattern::parse("FFSS", 4)), flat.evaluate());
  EXPECT_THAT(patterns_of(descent), ElementsAre("-1,-1,0,0"));
}

// All patterns with sources such that layer 0 is Full: by exhaustion.
void each_pattern(int num_layers, bool nearest, const std::function<void(const Pattern&)>& visit) {
  std::vector<int> sources(num_layers, Pattern::kFull);
  const std::function<void(int)> choose = [&](int layer) {
    if (layer == num_layers) {
      const auto pattern = Pattern::from_sources(sources);
      if (!nearest || pattern.is_nearest()) visit(pattern);
      return;
    }
    for (int source = -1; source < layer; ++source) {
      if (source >= 0 && sources[source] != Pattern::kFull) continue;
      sources[layer] = source;
      choose(layer + 1);
    }
    sources[layer] = Pattern::kFull;
  };
  choose(1);
}

// The definitions, written down a second time: what one step may reach from `pattern`.
std::vector<Pattern> neighbours(const Pattern& pattern, bool nearest) {
  std::vector<Pattern> found;
  each_pattern(pattern.num_layers(), nearest, [&](const Pattern& candidate) {
    if (candidate.num_full() != pattern.num_full() - 1) return;
    int removed = -1;
    for (int layer = 0; layer < pattern.num_layers(); ++layer) {
      if (candidate.is_full(layer) && !pattern.is_full(layer)) return;
      if (!candidate.is_full(layer) && pattern.is_full(layer)) removed = layer;
    }
    for (int layer = 0; layer < pattern.num_layers(); ++layer) {
      if (nearest || layer == removed || pattern.is_full(layer)) continue;
      const int expected =
          pattern.source(layer) == removed ? candidate.source(removed) : pattern.source(layer);
      if (candidate.source(layer) != expected) return;
    }
    found.push_back(candidate);
  });
  return found;
}

TEST(Search, GreedyAndRoutedFollowTheirDefinition) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const ToyLoss toy(7, 3, seed);
    for (const bool nearest : {true, false}) {
      Recorder recorder{toy, {}, 0};
      const auto result = search_patterns(
          options_for(nearest ? Strategy::kGreedy : Strategy::kRouted, Pattern::full(7)),
          recorder.evaluate());
      Pattern current = Pattern::full(7);
      std::size_t evaluations = 0;
      for (const auto& budget : result.budgets) {
        const auto reachable = neighbours(current, nearest);
        evaluations += reachable.size();
        for (const Pattern& other : reachable) {
          EXPECT_LE(budget.losses.mean(), toy(other).mean()) << current.str();
        }
        EXPECT_THAT(reachable, ::testing::Contains(budget.pattern));
        current = budget.pattern;
      }
      EXPECT_EQ(result.evaluations, static_cast<std::int64_t>(evaluations));
      EXPECT_EQ(current.num_full(), 1);
    }
  }
}

TEST(Search, FindsThePlantedOptimum) {
  // Layers 5 and 6 need layer 2's set, layer 4 its own, the others take any. With three Full layers
  // the best pattern is routed and unique in what it must hold.
  const auto loss = [](const Pattern& pattern) {
    double harm = 0;
    for (const int layer : {5, 6})
      harm += pattern.source(layer) == 2 || pattern.is_full(layer) ? 0 : 1;
    if (!pattern.is_full(4)) harm += 2;
    if (!pattern.is_full(2)) harm += 0.1;
    return Losses{{1 + harm}};
  };
  double best = std::numeric_limits<double>::infinity();
  each_pattern(7, false, [&](const Pattern& pattern) {
    if (pattern.num_full() == 3) best = std::min(best, loss(pattern).mean());
  });
  EXPECT_EQ(best, 1);
  for (const auto strategy : {Strategy::kRouted, Strategy::kRoutedLazy}) {
    Recorder recorder{loss, {}, 0};
    const auto result =
        search_patterns(options_for(strategy, Pattern::full(7), 3), recorder.evaluate());
    EXPECT_EQ(result.budgets.back().losses.mean(), best) << result.budgets.back().pattern.str();
    EXPECT_EQ(result.budgets.back().pattern.source(5), 2);
  }
  Recorder recorder{loss, {}, 0};
  const auto nearest =
      search_patterns(options_for(Strategy::kGreedy, Pattern::full(7), 3), recorder.evaluate());
  EXPECT_GT(nearest.budgets.back().losses.mean(), best);
}

TEST(Search, LazyMeasuresOnlyTheHeadAgain) {
  // No interactions: last measurements stay true, so each step after the first costs one.
  Recorder recorder = additive({{1, 0.3}, {2, 0.1}, {3, 0.4}, {4, 0.2}, {5, 0.25}});
  const auto result =
      search_patterns(options_for(Strategy::kLazy, Pattern::full(6)), recorder.evaluate());
  EXPECT_THAT(patterns_of(result), ElementsAre("FFSFFF", "FFSFSF", "FFSFSS", "FSSFSS", "FSSSSS"));
  EXPECT_EQ(result.evaluations, 5 + 4);
}

TEST(Search, LazyAgreesWithGreedyWhereIncreasesOnlyGrow) {
  // Supermodular: an increase measured earlier is a lower bound, and lazy is exact.
  const auto loss = [](const Pattern& pattern) {
    double sum = 0;
    for (int layer = 0; layer < pattern.num_layers(); ++layer) {
      if (!pattern.is_full(layer)) sum += 1 + 0.37 * ((layer * 5) % 11);
    }
    return Losses{{1 + sum * sum}};
  };
  Recorder exact{loss, {}, 0}, lazy{loss, {}, 0};
  const auto a =
      search_patterns(options_for(Strategy::kGreedy, Pattern::full(12)), exact.evaluate());
  const auto b = search_patterns(options_for(Strategy::kLazy, Pattern::full(12)), lazy.evaluate());
  EXPECT_EQ(patterns_of(a), patterns_of(b));
  EXPECT_LT(b.evaluations, a.evaluations);
}

TEST(Search, RoutedLazyMeasuresAgainWhatItsBudgetPaysFor) {
  // No interactions, any source will do. Of 5 layers the first step measures all 10 moves and takes
  // layer 2; a later one measures two again, if they are left: two of layer 4 (it earns .65 * 7 layer
  // runs and spends 2); layers 1 and 3 (.65 * 6, spends 6); layer 3's last move.
  Recorder recorder = additive({{1, 0.3}, {2, 0.1}, {3, 0.4}, {4, 0.2}});
  const auto result =
      search_patterns(options_for(Strategy::kRoutedLazy, Pattern::full(5)), recorder.evaluate());
  EXPECT_THAT(patterns_of(result),
              ElementsAre("-1,-1,0,-1,-1", "-1,-1,0,-1,0", "-1,0,0,-1,0", "FSSSS"));
  EXPECT_EQ(result.evaluations, 10 + 2 + 2 + 1);
}

TEST(Search, RoutedLazyStaysNearRouted) {
  constexpr int kLayers = 16;
  double exact_sum = 0, lazy_sum = 0, greedy_sum = 0;
  for (std::uint64_t seed = 100; seed < 112; ++seed) {
    const ToyLoss toy(kLayers, 8, seed);
    const auto sum = [&](Strategy strategy) {
      Recorder recorder{toy, {}, 0};
      const auto result =
          search_patterns(options_for(strategy, Pattern::full(kLayers)), recorder.evaluate());
      if (strategy == Strategy::kRoutedLazy) {
        EXPECT_LE(result.evaluations, 200);
      }
      double above_start = 0;
      for (const int kept : {8, 4, 2}) {
        above_start += result.budgets[kLayers - 1 - kept].losses.mean() - result.start.mean();
      }
      return above_start;
    };
    exact_sum += sum(Strategy::kRouted);
    lazy_sum += sum(Strategy::kRoutedLazy);
    greedy_sum += sum(Strategy::kGreedy);
  }
  EXPECT_LT(exact_sum, 0.97 * greedy_sum);
  EXPECT_NEAR(lazy_sum, exact_sum, 0.01 * exact_sum);
}

TEST(Search, ForwardAddsTheMostUsefulLayer) {
  Recorder recorder = additive({{1, 0.3}, {2, 0.1}, {3, 0.4}, {4, 0.2}});
  const auto result =
      search_patterns(options_for(Strategy::kForward, Pattern::full(5)), recorder.evaluate());
  EXPECT_THAT(patterns_of(result), ElementsAre("FFSFF", "FFSFS", "FSSFS", "FSSSS"));
  EXPECT_EQ(result.evaluations, 1 + 4 + 3 + 2);
  Recorder to_two = additive({{1, 0.3}, {2, 0.1}, {3, 0.4}, {4, 0.2}});
  const auto small =
      search_patterns(options_for(Strategy::kForward, Pattern::full(5), 2), to_two.evaluate());
  EXPECT_THAT(patterns_of(small), ElementsAre("FSSFS", "FSSSS"));
  EXPECT_EQ(small.evaluations, 1 + 4);
}

TEST(Search, BlockedCommitsOneMoveABlockAndPinsTheFirstLayers) {
  Recorder recorder =
      additive({{1, 0.3}, {2, 0.1}, {3, 0.4}, {4, 0.2}, {5, 0.6}, {6, 0.5}, {7, 0.05}});
  auto options = options_for(Strategy::kBlocked, Pattern::full(8));
  options.num_blocks = 2;
  const auto result = search_patterns(options, recorder.evaluate());
  EXPECT_THAT(patterns_of(result),
              ElementsAre("FFSFFFFF", "FFSFFFFS", "FSSFFFFS", "FSSFFFSS", "FSSSFFSS", "FSSSFSSS"));
  EXPECT_EQ(result.evaluations, 2 * (3 + 2 + 1));
  // One block is greedy.
  options.num_blocks = 1;
  const ToyLoss toy(8, 2, 3);
  Recorder one{toy, {}, 0}, greedy{toy, {}, 0};
  EXPECT_EQ(patterns_of(search_patterns(options, one.evaluate())),
            patterns_of(search_patterns(options_for(Strategy::kGreedy, Pattern::full(8)),
                                        greedy.evaluate())));
}

TEST(Search, DescentReachesAPointWhereNoSingleSourceHelps) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const ToyLoss toy(10, 3, seed);
    Recorder recorder{toy, {}, 0};
    const auto start = Pattern::uniform(3, 10);
    const auto result =
        search_patterns(options_for(Strategy::kDescent, start), recorder.evaluate());
    ASSERT_EQ(result.budgets.size(), 1u);
    const Pattern& found = result.budgets[0].pattern;
    EXPECT_EQ(found.full_layers(), start.full_layers());
    EXPECT_LE(result.budgets[0].losses.mean(), result.start.mean());
    for (int layer = 0; layer < 10; ++layer) {
      for (const int source : start.full_layers()) {
        if (found.is_full(layer) || source >= layer) continue;
        EXPECT_GT(toy(found.with_source(layer, source)).mean(),
                  result.budgets[0].losses.mean() - 1e-5);
      }
    }
  }
}

TEST(Search, RemovesOnlyTheStartSchedulesFullLayers) {
  const auto start = Pattern::parse("FFSFSFFS", 8);
  const ToyLoss toy(8, 2, 5);
  for (const auto strategy : {Strategy::kGreedy, Strategy::kLazy, Strategy::kForward,
                              Strategy::kRouted, Strategy::kRoutedLazy}) {
    Recorder recorder{toy, {}, 0};
    const auto result = search_patterns(options_for(strategy, start), recorder.evaluate());
    EXPECT_EQ(result.budgets.size(), 4u);
    for (const Pattern& pattern : recorder.asked) {
      for (const int layer : {2, 4, 7}) EXPECT_FALSE(pattern.is_full(layer)) << pattern.str();
    }
  }
}

std::string error_of(const SearchOptions& options, const Evaluate& evaluate) {
  try {
    search_patterns(options, evaluate);
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Search, RefusesOptionsThatDoNotFit) {
  Recorder recorder = additive({});
  const auto evaluate = recorder.evaluate();
  EXPECT_THAT(error_of(options_for(Strategy::kGreedy, Pattern::full(4), 4), evaluate),
              HasSubstr("expected 1 to 3 (the start schedule has 4), found 4"));
  EXPECT_THAT(error_of(options_for(Strategy::kGreedy, Pattern::full(4), 0), evaluate),
              HasSubstr("found 0"));
  EXPECT_THAT(error_of(options_for(Strategy::kRouted, Pattern::parse("FSSS", 4)), evaluate),
              HasSubstr("expected two or more Full layers, found FSSS"));
  EXPECT_THAT(error_of(options_for(Strategy::kDescent, Pattern::full(4)), evaluate),
              HasSubstr("expected a start pattern with Shared layers"));
  EXPECT_THAT(error_of(options_for(Strategy::kDescent, Pattern::parse("FFSS", 4), 2), evaluate),
              HasSubstr("expected none for descent"));
  auto blocked = options_for(Strategy::kBlocked, Pattern::parse("FFSFFF", 6));
  blocked.num_blocks = 3;
  EXPECT_THAT(error_of(blocked, evaluate),
              HasSubstr("layer 2, the first of block 1: expected Full"));
  blocked.num_blocks = 7;
  EXPECT_THAT(error_of(blocked, evaluate), HasSubstr("expected 1 to 6 blocks, found 7"));
  Recorder broken{
      [](const Pattern& pattern) {
        return Losses{{pattern.is_full(2) ? 1.0 : std::numeric_limits<double>::quiet_NaN()}};
      },
      {},
      0};
  EXPECT_THAT(error_of(options_for(Strategy::kGreedy, Pattern::full(3)), broken.evaluate()),
              HasSubstr("loss of pattern FFS: expected a finite number, found nan"));
}

TEST(Search, StrategyNamesRoundTrip) {
  for (const char* name :
       {"greedy", "lazy", "forward", "blocked", "routed", "routed-lazy", "descent", "similarity"}) {
    EXPECT_EQ(strategy_name(parse_strategy(name)), name);
    EXPECT_THAT(strategy_names(), HasSubstr(name));
  }
  EXPECT_THROW(parse_strategy("best"), InputError);
}

}  // namespace
}  // namespace indexcache
