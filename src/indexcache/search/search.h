// Search for sharing patterns. Knows patterns and losses only: no model, no device.
//
// Strategies (docs: definitions.md; ties: lower layer, then lower source; all deterministic):
//   greedy      the paper's Algorithm 1: remove the Full layer whose removal gives the lowest loss,
//   sources nearest lazy        the same with a queue ordered by each move's last measured
//   increase; only the head is measured again forward     from layer 0 alone, add the Full layer
//   that lowers the loss most, sources nearest blocked     the paper's pipeline variant with P
//   blocks routed      greedy over moves (layer, source) descent     on a given pattern: sweeps
//   over Shared layers, each takes its best source, until no sweep gains 1e-5
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "indexcache/policy/pattern.h"

namespace indexcache {

// One pattern's losses, one entry a calibration sequence: their mean is the loss, and differences
// are paired.
struct Losses {
  std::vector<double> per_sequence;
  double mean() const;
};

// Evaluates a set of patterns together (so that an implementation can share prefixes); results in
// the same order.
using Evaluate = std::function<std::vector<Losses>(const std::vector<Pattern>&)>;

enum class Strategy { kGreedy, kLazy, kForward, kBlocked, kRouted, kDescent };
Strategy parse_strategy(const std::string& name);
std::string strategy_name(Strategy strategy);

struct SearchOptions {
  Strategy strategy = Strategy::kGreedy;
  Pattern start = Pattern::full(
      1);        // greedy, lazy, blocked, routed: removals start here; descent: the pattern refined
  int keep = 1;  // stop when this many Full layers are left (forward: when reached)
  int num_blocks = 1;  // blocked
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
  std::int64_t evaluations = 0;       // patterns evaluated
};

// `on_step` (optional) is told after every committed step, with an estimate of the evaluations
// still to come.
struct SearchProgress {
  std::int64_t evaluations = 0;
  std::int64_t evaluations_left = 0;
  int num_full = 0;
  double loss = 0;
};
SearchResult search_patterns(const SearchOptions& options, const Evaluate& evaluate,
                             const std::function<void(const SearchProgress&)>& on_step = {});

}  // namespace indexcache
