// Search for sharing patterns. Knows patterns and losses only: no model, no device.
//
// Strategies. A move (l, s) makes the Full layer l Shared with source s, an earlier Full layer; the
// layers that read l then read s. Ties: lower layer, then lower source. All are deterministic.
//
//   greedy       the paper's Algorithm 1: of all moves with the nearest source, the one with the
//                lowest loss, until `keep` Full layers are left
//   lazy         the same, from a queue ordered by each move's last measured increase of the loss;
//                only its head is measured again
//   forward      from layer 0 alone, adds the Full layer that lowers the loss most, sources nearest
//   blocked      the paper's pipeline variant: layers in blocks, the first of each pinned Full;
//                within a step the blocks are searched in order and each commits its best move
//   routed       greedy over all moves (l, s)
//   routed-lazy  routed for about the cost of greedy: the first step measures every move; a later
//                one measures again the moves with the lowest last increases, then those that still
//                look better than the best of these, as far as a share of greedy's cost goes (lazy.cpp)
//   descent      on a given pattern: sweeps over Shared layers, each takes its best source, until
//                no sweep gains 1e-5
//   similarity   the paper's appendix C: for every budget the nearest pattern with the highest sum
//                of similarities of Shared layers and their sources, exactly (similarity.h);
//                losses are measured, but choose nothing
//   screened     for every budget the routed pattern with the lowest sum of estimated increases of
//                the loss (screened.h); losses are measured, but choose nothing
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "indexcache/policy/pattern.h"
#include "indexcache/search/screened.h"
#include "indexcache/search/similarity.h"

namespace indexcache {

// One pattern's losses, one entry a calibration sequence: their mean is the loss, and differences
// are paired.
struct Losses {
  std::vector<double> per_sequence;
  double mean() const;
};

// Evaluates a set of patterns together; results in the same order. `current` is the pattern that
// the search stands at: the candidates, and those of coming calls, share most of their layers with
// it, so an implementation can run shared prefixes once and keep their states between calls.
using Evaluate = std::function<std::vector<Losses>(const Pattern& current,
                                                   const std::vector<Pattern>& candidates)>;

enum class Strategy {
  kGreedy,
  kLazy,
  kForward,
  kBlocked,
  kRouted,
  kRoutedLazy,
  kDescent,
  kSimilarity,
  kScreened
};
Strategy parse_strategy(const std::string& name);
std::string strategy_name(Strategy strategy);
// All names, for help and errors: "greedy, lazy, ...".
std::string strategy_names();

struct SearchOptions {
  Strategy strategy = Strategy::kGreedy;
  // What losses are compared with, and where removals start; forward, similarity and screened choose
  // from its Full layers; descent refines it.
  Pattern start = Pattern::full(1);
  // Stop at this many Full layers. None: removals go down to layer 0 alone (blocked: one a block),
  // forward goes up to one less than `start` has. Not for descent.
  std::optional<int> keep;
  int num_blocks = 1;           // blocked
  SimilarityMatrix similarity;  // similarity: a row for each layer of `start`
  IncreaseMatrix increases;     // screened: likewise
};

// The best pattern found at one budget.
struct BudgetResult {
  int num_full = 0;
  Pattern pattern = Pattern::full(1);
  Losses losses;
};

struct SearchResult {
  Losses start;                       // of the start schedule
  std::vector<BudgetResult> budgets;  // one per number of Full layers reached, most first
  std::int64_t evaluations = 0;       // patterns evaluated besides the start schedule
};

struct SearchProgress {
  std::int64_t evaluations = 0;
  // Exact for greedy, routed, forward, blocked, similarity and screened. Estimated for lazy and routed-lazy,
  // which measure again as losses demand, and for descent, of which each sweep that gains brings
  // one more.
  std::int64_t evaluations_left = 0;
  int num_full = 0;
  double loss = 0;
};

// Throws InputError for options that do not fit together; search_patterns begins with it.
void check_search_options(const SearchOptions& options);

// `on_step` (optional) is told after the start schedule's evaluation, after every committed step
// and, by descent, after every layer. Throws InputError where a loss is not finite.
SearchResult search_patterns(const SearchOptions& options, const Evaluate& evaluate,
                             const std::function<void(const SearchProgress&)>& on_step = {});

}  // namespace indexcache
