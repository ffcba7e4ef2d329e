#include "indexcache/search/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "indexcache/base/error.h"
#include "indexcache/search/search_run.h"

namespace indexcache {
namespace {

struct StrategyEntry {
  Strategy strategy;
  const char* name;
};

constexpr std::array<StrategyEntry, 9> kStrategies = {{{Strategy::kGreedy, "greedy"},
                                                       {Strategy::kLazy, "lazy"},
                                                       {Strategy::kForward, "forward"},
                                                       {Strategy::kBlocked, "blocked"},
                                                       {Strategy::kRouted, "routed"},
                                                       {Strategy::kRoutedLazy, "routed-lazy"},
                                                       {Strategy::kDescent, "descent"},
                                                       {Strategy::kSimilarity, "similarity"},
                                                       {Strategy::kScreened, "screened"}}};

}  // namespace

void check_search_options(const SearchOptions& options) {
  const int num_full = options.start.num_full();
  if (options.strategy == Strategy::kDescent) {
    if (num_full == options.start.num_layers()) {
      throw expectation_error("search: descent", "a start pattern with Shared layers",
                              options.start.str());
    }
    if (options.keep) {
      throw expectation_error("search: Full layers to keep",
                              "none for descent, which keeps those of its start pattern",
                              fmt::format("{}", *options.keep));
    }
    return;
  }
  if (num_full < 2) {
    throw expectation_error("search: start schedule", "two or more Full layers",
                            options.start.str());
  }
  const bool blocked = options.strategy == Strategy::kBlocked;
  const int least = blocked ? options.num_blocks : 1;
  if (blocked && (least < 1 || least > options.start.num_layers())) {
    throw expectation_error("search: blocks",
                            fmt::format("1 to {} blocks", options.start.num_layers()),
                            fmt::format("{}", least));
  }
  for (int block = 0; blocked && block < options.num_blocks; ++block) {
    const int first = first_layer_of_block(block, options.num_blocks, options.start.num_layers());
    if (options.start.is_full(first)) continue;
    throw expectation_error(
        fmt::format("search: blocked: layer {}, the first of block {}", first, block),
        "Full in the start schedule", "Shared");
  }
  if (options.keep && (*options.keep < least || *options.keep >= num_full)) {
    throw expectation_error(
        "search: Full layers to keep",
        fmt::format("{} to {} (the start schedule has {})", least, num_full - 1, num_full),
        fmt::format("{}", *options.keep));
  }
}

double Losses::mean() const {
  INDEXCACHE_ASSERT(!per_sequence.empty());
  return std::accumulate(per_sequence.begin(), per_sequence.end(), 0.0) /
         static_cast<double>(per_sequence.size());
}

Strategy parse_strategy(const std::string& name) {
  for (const StrategyEntry& entry : kStrategies) {
    if (name == entry.name) return entry.strategy;
  }
  throw expectation_error("strategy", strategy_names(), fmt::format("\"{}\"", name));
}

std::string strategy_name(Strategy strategy) {
  const auto entry = std::ranges::find(kStrategies, strategy, &StrategyEntry::strategy);
  INDEXCACHE_ASSERT(entry != kStrategies.end());
  return entry->name;
}

std::string strategy_names() {
  std::string names;
  for (const StrategyEntry& entry : kStrategies) {
    names += names.empty() ? "" : ", ";
    names += entry.name;
  }
  return names;
}

SearchResult search_patterns(const SearchOptions& options, const Evaluate& evaluate,
                             const std::function<void(const SearchProgress&)>& on_step) {
  check_search_options(options);
  SearchRun run(options, evaluate, on_step);
  switch (options.strategy) {
    case Strategy::kGreedy:
      search_exact(run, MoveSources::kNearest);
      break;
    case Strategy::kLazy:
      search_lazy(run);
      break;
    case Strategy::kForward:
      search_forward(run);
      break;
    case Strategy::kBlocked:
      search_blocked(run);
      break;
    case Strategy::kRouted:
      search_exact(run, MoveSources::kAny);
      break;
    case Strategy::kRoutedLazy:
      search_routed_lazy(run);
      break;
    case Strategy::kDescent:
      search_descent(run);
      break;
    case Strategy::kSimilarity:
      search_similarity(run);
      break;
    case Strategy::kScreened:
      search_screened(run);
      break;
  }
  return run.take_result();
}

// --- What the strategies share.

std::vector<Move> moves_of(const Pattern& pattern, MoveSources sources) {
  std::vector<Move> moves;
  const std::vector<int> full = pattern.full_layers();
  for (std::size_t i = 1; i < full.size(); ++i) {
    for (std::size_t j = sources == MoveSources::kNearest ? i - 1 : 0; j < i; ++j) {
      moves.push_back({full[i], full[j]});
    }
  }
  return moves;
}

std::vector<Pattern> apply_moves(const Pattern& pattern, const std::vector<Move>& moves) {
  std::vector<Pattern> patterns;
  for (const Move& move : moves) patterns.push_back(pattern.with_shared(move.layer, move.source));
  return patterns;
}

SearchRun::SearchRun(const SearchOptions& options, const Evaluate& evaluate,
                     const std::function<void(const SearchProgress&)>& on_step)
    : options_(options), evaluate_(evaluate), on_step_(on_step) {
  measure(options.start, {options.start});
  result_.start = known_.at(options.start);
  result_.evaluations = 0;
}

void SearchRun::measure(const Pattern& current, const std::vector<Pattern>& candidates) {
  std::vector<Pattern> unknown;
  for (const Pattern& candidate : candidates) {
    if (!known_.contains(candidate)) unknown.push_back(candidate);
  }
  if (unknown.empty()) return;
  std::vector<Losses> losses = evaluate_(current, unknown);
  INDEXCACHE_ASSERT(losses.size() == unknown.size());
  for (std::size_t i = 0; i < unknown.size(); ++i) {
    if (!std::isfinite(losses[i].mean())) {
      throw expectation_error(fmt::format("search: loss of pattern {}", unknown[i].str()),
                              "a finite number", fmt::format("{}", losses[i].mean()));
    }
    known_.emplace(unknown[i], std::move(losses[i]));
  }
  result_.evaluations += static_cast<std::int64_t>(unknown.size());
}

std::size_t SearchRun::measure_best(const Pattern& current,
                                    const std::vector<Pattern>& candidates) {
  INDEXCACHE_ASSERT(!candidates.empty());
  measure(current, candidates);
  std::size_t best = 0;
  for (std::size_t i = 1; i < candidates.size(); ++i) {
    if (loss(candidates[i]) < loss(candidates[best])) best = i;
  }
  return best;
}

void SearchRun::report(const Pattern& current, std::int64_t evaluations_left) {
  if (!on_step_) return;
  on_step_({result_.evaluations, evaluations_left, current.num_full(), loss(current)});
}

void SearchRun::commit(const Pattern& pattern, std::int64_t evaluations_left) {
  result_.budgets.push_back({pattern.num_full(), pattern, known_.at(pattern)});
  report(pattern, evaluations_left);
}

SearchResult SearchRun::take_result() {
  std::ranges::sort(result_.budgets, std::greater<>(), &BudgetResult::num_full);
  return std::move(result_);
}

}  // namespace indexcache
