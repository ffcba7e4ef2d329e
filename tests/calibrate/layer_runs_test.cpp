// What the strategies cost in layer runs, on toy losses.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "indexcache/calibrate/trie_plan.h"
#include "indexcache/search/pattern_file.h"
#include "search/toy_loss.h"

namespace indexcache {
namespace {

struct Outcome {
  SearchResult result;
  double layer_runs = 0;
};

using LossOfPattern = std::function<Losses(const Pattern&)>;

Outcome search_toy(const LossOfPattern& toy, int num_layers, Strategy strategy, int stride) {
  TriePlanner planner(num_layers, stride);
  Outcome outcome;
  SearchOptions options;
  options.strategy = strategy;
  options.start = Pattern::full(num_layers);
  outcome.result = search_patterns(options, [&](const Pattern& current, const auto& patterns) {
    outcome.layer_runs += static_cast<double>(planner.plan(current, patterns).steps.size());
    std::vector<Losses> losses;
    for (const Pattern& pattern : patterns) losses.push_back(toy(pattern));
    return losses;
  });
  return outcome;
}

// The ranges are those that docs/patterns.md states, of single runs.
TEST(LayerRuns, OfRoutedLazyAreNearGreedysAndOfRoutedFarAbove) {
  for (const int num_layers : {8, 12, 16, 24, 32}) {
    for (const int stride : {0, 1}) {
      double greedy_runs = 0, lazy_runs = 0;
      int budgets = 0, within = 0;
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        SCOPED_TRACE(::testing::Message()
                     << num_layers << " layers, stride " << stride << ", seed " << seed);
        const ToyLoss toy(num_layers, 16, seed);
        const auto greedy = search_toy(toy, num_layers, Strategy::kGreedy, stride);
        const auto lazy = search_toy(toy, num_layers, Strategy::kRoutedLazy, stride);
        greedy_runs += greedy.layer_runs;
        lazy_runs += lazy.layer_runs;
        EXPECT_GE(lazy.layer_runs, 0.9 * greedy.layer_runs);
        EXPECT_LE(lazy.layer_runs, 1.3 * greedy.layer_runs);
        if (stride != 1) continue;
        const auto routed = search_toy(toy, num_layers, Strategy::kRouted, stride);
        EXPECT_GE(routed.layer_runs, 1.9 * greedy.layer_runs);
        EXPECT_LE(routed.layer_runs, 8.3 * greedy.layer_runs);
        for (std::size_t i = 0; i < routed.result.budgets.size(); ++i) {
          const Losses& exact = routed.result.budgets[i].losses;
          const double error = paired_standard_error(exact, routed.result.start);
          ++budgets;
          within += lazy.result.budgets[i].losses.mean() <= exact.mean() + error + 1e-12;
        }
      }
      EXPECT_LE(lazy_runs, 1.2 * greedy_runs) << num_layers << " layers, stride " << stride;
      EXPECT_GE(within, 0.97 * budgets) << num_layers << " layers: within one standard error";
    }
  }
}

// Losses that mislead whoever trusts earlier measurements.
struct HostileLoss {
  const char* name;
  // Of the sum of what its Shared layers lose by their sources.
  std::function<double(double)> of_sum;
};

TEST(LayerRuns, OfRoutedLazyStayBelowOneAndAHalfGreedysOnHostileLosses) {
  const std::vector<HostileLoss> hostile = {
      {"nothing matters", [](double) { return 1.0; }},
      {"increases grow with every step", [](double sum) { return sum * sum; }},
      {"and grow ever faster", [](double sum) { return std::exp(2 * sum); }},
      {"increases shrink with every step", [](double sum) { return std::sqrt(sum); }},
      {"every change of the sum changes their order",
       [](double sum) { return std::sin(40 * sum); }},
  };
  for (const HostileLoss& loss : hostile) {
    for (const int num_layers : {6, 8, 12, 16, 24, 32}) {
      for (std::uint64_t seed = 0; seed < 3; ++seed) {
        for (const int stride : {0, 1}) {
          SCOPED_TRACE(::testing::Message() << loss.name << ", " << num_layers << " layers, seed "
                                            << seed << ", stride " << stride);
          std::mt19937_64 random(seed);
          std::uniform_real_distribution<double> uniform(0.01, 1);
          std::vector<std::vector<double>> lost(num_layers);
          for (int layer = 0; layer < num_layers; ++layer) {
            for (int source = 0; source < layer; ++source) lost[layer].push_back(uniform(random));
          }
          const auto toy = [&](const Pattern& pattern) {
            double sum = 0;
            for (int layer = 0; layer < num_layers; ++layer) {
              if (!pattern.is_full(layer)) sum += lost[layer][pattern.source(layer)];
            }
            return Losses{{2 + loss.of_sum(sum)}};
          };
          const auto greedy = search_toy(toy, num_layers, Strategy::kGreedy, stride);
          const auto lazy = search_toy(toy, num_layers, Strategy::kRoutedLazy, stride);
          EXPECT_EQ(lazy.result.budgets.size(), static_cast<std::size_t>(num_layers - 1));
          EXPECT_LE(lazy.layer_runs, 1.5 * greedy.layer_runs);
        }
      }
    }
  }
}

// Greedy's runs by hand: a step with the Full layers l > 0 runs, for each, the layers from l up, and
// the trunk below the last of them once.
TEST(LayerRuns, GreedyWithoutCarryingIsCountedByHand) {
  const ToyLoss toy(4, 2, 1);
  const auto outcome = search_toy(toy, 4, Strategy::kGreedy, 0);
  double expected = 4;  // the start schedule
  Pattern current = Pattern::full(4);
  for (const BudgetResult& budget : outcome.result.budgets) {
    int last = 0;
    for (const int layer : current.full_layers()) {
      if (layer == 0) continue;
      expected += 4 - layer;
      last = layer;
    }
    expected += last;
    current = budget.pattern;
  }
  EXPECT_EQ(outcome.layer_runs, expected);
}

}  // namespace
}  // namespace indexcache
