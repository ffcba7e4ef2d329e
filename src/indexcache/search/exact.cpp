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

}  // namespace

void search_exact(SearchRun& run, MoveSources sources) {
  const int keep = run.options().keep.value_or(1);
  const Pattern& start = run.options().start;
  Pattern current = sources == MoveSources::kNearest ? start.as_nearest() : start;
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
  while (current.num_full() > keep) {
    for (int block = 0; block < num_blocks && current.num_full() > keep; ++block) {
      auto moves = moves_of(current, MoveSources::kNearest);
      std::erase_if(moves, [&](const Move& move) {
        return move.layer <= first_layer(block) || move.layer >= first_layer(block + 1);
      });
      if (moves.empty()) continue;
      const auto candidates = apply_moves(current, moves);
      current = candidates[run.measure_best(current, candidates)];
      run.commit(current,
                 removals_left(current.num_full(), keep, MoveSources::kNearest) / num_blocks);
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
  while (true) {
    const double before = run.loss(current);
    for (int layer = 0; layer < current.num_layers(); ++layer) {
      if (current.is_full(layer)) continue;
      std::vector<Pattern> candidates;
      for (const int source : full) {
        if (source < layer) candidates.push_back(current.with_source(layer, source));
      }
      current = candidates[run.measure_best(current, candidates)];
    }
    if (before - run.loss(current) < kDescentGain) break;
  }
  run.commit(current, 0);
}

}  // namespace indexcache
