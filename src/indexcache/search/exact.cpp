// The strategies that measure every move of a step: greedy, routed, blocked, forward, descent.
#include <algorithm>
#include <vector>

#include "indexcache/search/search_run.h"

namespace indexcache {
namespace {

// What descent calls a gain.
constexpr double kDescentGain = 1e-5;

// Evaluations of exact removal from num_full Full layers down to keep.
std::int64_t removals_left(std::int64_t num_full, std::int64_t keep, MoveSources sources) {
  std::int64_t evaluations = 0;
  for (std::int64_t full = num_full; full > keep; --full) {
    evaluations += sources == MoveSources::kNearest ? full - 1 : full * (full - 1) / 2;
  }
  return evaluations;
}

// Evaluations of blocked removal from `current` down to keep, with `block` the next to be searched.
std::int64_t blocked_left(const Pattern& current, int num_blocks, int block, int keep) {
  std::vector<int> removable(num_blocks, -1);  // a block's first layer stays
  for (const int layer : current.full_layers()) {
    int of = 0;
    while (layer >= first_layer_of_block(of + 1, num_blocks, current.num_layers())) ++of;
    ++removable[of];
  }
  std::int64_t evaluations = 0;
  for (int removals = current.num_full() - keep; removals > 0; ++block) {
    int& moves = removable[block % num_blocks];
    if (moves == 0) continue;
    evaluations += moves--;
    --removals;
  }
  return evaluations;
}

// Evaluations of one sweep of descent over the layers from `first` on: every source but its own.
std::int64_t sweep_left(const Pattern& pattern, int first) {
  std::int64_t evaluations = 0, sources = 0;
  for (int layer = 0; layer < pattern.num_layers(); ++layer) {
    if (pattern.is_full(layer)) {
      ++sources;
    } else if (layer >= first) {
      evaluations += sources - 1;
    }
  }
  return evaluations;
}

}  // namespace

void search_exact(SearchRun& run, MoveSources sources) {
  const int keep = run.options().keep.value_or(1);
  const Pattern& start = run.options().start;
  Pattern current = sources == MoveSources::kNearest ? start.as_nearest() : start;
  run.report(start, removals_left(current.num_full(), keep, sources));
  while (current.num_full() > keep) {
    const auto candidates = apply_moves(current, moves_of(current, sources));
    current = candidates[run.measure_best(current, candidates)];
    run.commit(current, removals_left(current.num_full(), keep, sources));
  }
}

void search_blocked(SearchRun& run) {
  const int num_layers = run.options().start.num_layers();
  const int num_blocks = run.options().num_blocks;
  const int keep = run.options().keep.value_or(num_blocks);
  const auto first_layer = [&](int block) {
    return first_layer_of_block(block, num_blocks, num_layers);
  };
  Pattern current = run.options().start.as_nearest();
  run.report(run.options().start, blocked_left(current, num_blocks, 0, keep));
  while (current.num_full() > keep) {
    for (int block = 0; block < num_blocks && current.num_full() > keep; ++block) {
      auto moves = moves_of(current, MoveSources::kNearest);
      std::erase_if(moves, [&](const Move& move) {
        return move.layer <= first_layer(block) || move.layer >= first_layer(block + 1);
      });
      if (moves.empty()) continue;
      const auto candidates = apply_moves(current, moves);
      current = candidates[run.measure_best(current, candidates)];
      run.commit(current, blocked_left(current, num_blocks, block + 1, keep));
    }
  }
}

void search_forward(SearchRun& run) {
  const std::vector<int> allowed = run.options().start.full_layers();
  const int num_layers = run.options().start.num_layers();
  const int num_allowed = static_cast<int>(allowed.size());
  const int keep = run.options().keep.value_or(num_allowed - 1);
  const auto left = [&](std::int64_t num_full) {
    return removals_left(num_allowed - num_full + 1, num_allowed - keep + 1, MoveSources::kNearest);
  };
  Pattern current = Pattern::nearest({0}, num_layers);
  run.report(run.options().start, 1 + left(1));
  run.measure(current, {current});
  run.commit(current, left(1));
  while (current.num_full() < keep) {
    std::vector<Pattern> candidates;
    for (const int layer : allowed) {
      if (current.is_full(layer)) continue;
      auto full = current.full_layers();
      full.push_back(layer);
      candidates.push_back(Pattern::nearest(full, num_layers));
    }
    current = candidates[run.measure_best(current, candidates)];
    run.commit(current, left(current.num_full()));
  }
}

void search_descent(SearchRun& run) {
  Pattern current = run.options().start;
  const std::vector<int> full = current.full_layers();
  // A first sweep that gains nothing would be the last; most gain.
  run.report(current, 2 * sweep_left(current, 0));
  for (bool first_sweep = true;; first_sweep = false) {
    const double before = run.loss(current);
    for (int layer = 0; layer < current.num_layers(); ++layer) {
      if (current.is_full(layer)) continue;
      std::vector<Pattern> candidates;
      for (const int source : full) {
        if (source < layer) candidates.push_back(current.with_source(layer, source));
      }
      current = candidates[run.measure_best(current, candidates)];
      const bool another = first_sweep || before - run.loss(current) >= kDescentGain;
      run.report(current, sweep_left(current, layer + 1) + (another ? sweep_left(current, 0) : 0));
    }
    if (before - run.loss(current) < kDescentGain) break;
  }
  run.commit(current, 0);
}

}  // namespace indexcache
