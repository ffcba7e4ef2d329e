// The strategies that trust earlier measurements: lazy and routed-lazy.
//
// A move's increase is the loss after it minus the loss before it. Increases measured at an earlier
// pattern are no bounds on today's, only a good order to look in.
//
// How much routed-lazy measures again is a compromise found on toy losses of 6 to 32 layers, harmless
// and hostile ones (tests/calibrate/layer_runs_test.cpp). A step measures sqrt(n) moves, n the Full
// layers of the start schedule, at most two of one layer, as the sources of a layer that matters
// little all look good and would crowd out the rest; then what still looks better than the best of
// these, so that this is the best unless a move that looked worse has become better. All of it is
// paid from a budget: measuring a move runs its layer and those above again, and every step earns
// 0.65 of what a step of greedy costs. Where increases keep changing, and most moves seem to be worth
// another look, that is what keeps the search below 1.5 times greedy: the first step, which measures
// every move, costs 0.7 of all of greedy's.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/search/search_run.h"

namespace indexcache {
namespace {

constexpr double kShareOfGreedy = 0.65;
constexpr int kMeasuredAgainOfALayer = 2;

struct QueuedMove {
  double increase = 0;  // as last measured
  Move move;
  bool fresh = false;  // measured at the current pattern

  friend bool operator<(const QueuedMove& a, const QueuedMove& b) {
    if (a.increase != b.increase) return a.increase < b.increase;
    if (a.move.layer != b.move.layer) return a.move.layer < b.move.layer;
    return a.move.source < b.move.source;
  }
};

void measure_queued(SearchRun& run, const Pattern& current, std::vector<QueuedMove*> queued) {
  std::vector<Pattern> candidates;
  for (const QueuedMove* item : queued) {
    candidates.push_back(current.with_shared(item->move.layer, item->move.source));
  }
  run.measure(current, candidates);
  for (std::size_t i = 0; i < queued.size(); ++i) {
    queued[i]->increase = run.loss(candidates[i]) - run.loss(current);
    queued[i]->fresh = true;
  }
}

std::vector<QueuedMove> make_queue(const Pattern& pattern, MoveSources sources) {
  std::vector<QueuedMove> queue;
  for (const Move& move : moves_of(pattern, sources)) queue.push_back({0, move, false});
  return queue;
}

std::vector<QueuedMove*> all_of(std::vector<QueuedMove>& queue) {
  std::vector<QueuedMove*> items;
  for (QueuedMove& item : queue) items.push_back(&item);
  return items;
}

// Layers that run again to measure a move: its own and those above.
int cost(const Pattern& current, const Move& move) { return current.num_layers() - move.layer; }

// What a step of greedy costs: one move of every Full layer but the first.
int cost_of_greedy_step(const Pattern& current) {
  int sum = 0;
  for (const int layer : current.full_layers()) {
    if (layer > 0) sum += current.num_layers() - layer;
  }
  return sum;
}

// The `width` moves with the lowest last increases, at most kMeasuredAgainOfALayer of one layer.
std::vector<QueuedMove*> most_promising(std::vector<QueuedMove>& queue, std::size_t width) {
  std::ranges::sort(queue, std::less<>());
  std::map<int, int> of_layer;
  std::vector<QueuedMove*> chosen;
  for (QueuedMove& item : queue) {
    if (chosen.size() == width) break;
    if (of_layer[item.move.layer]++ < kMeasuredAgainOfALayer) chosen.push_back(&item);
  }
  return chosen;
}

const QueuedMove& best_fresh(const std::vector<QueuedMove>& queue) {
  const QueuedMove* best = nullptr;
  for (const QueuedMove& item : queue) {
    if (item.fresh && (best == nullptr || item < *best)) best = &item;
  }
  INDEXCACHE_ASSERT(best != nullptr);
  return *best;
}

// The moves that looked better when they were last measured than `best` does now.
std::vector<QueuedMove*> better_than(const QueuedMove best, std::vector<QueuedMove>& queue) {
  std::ranges::sort(queue, std::less<>());
  std::vector<QueuedMove*> chosen;
  for (QueuedMove& item : queue) {
    if (!item.fresh && item < best) chosen.push_back(&item);
  }
  return chosen;
}

// Those of `items`, the first ones first, that `budget` pays for; it is reduced by what they cost.
std::vector<QueuedMove*> affordable(const Pattern& current, const std::vector<QueuedMove*>& items,
                                    double& budget) {
  std::vector<QueuedMove*> chosen;
  for (QueuedMove* item : items) {
    if (cost(current, item->move) > budget) continue;
    budget -= cost(current, item->move);
    chosen.push_back(item);
  }
  return chosen;
}

// Measures the head of the queue until it was measured at `current`; then it is the move to take.
Move settle_head(SearchRun& run, const Pattern& current, std::vector<QueuedMove>& queue) {
  while (true) {
    QueuedMove& head = *std::ranges::min_element(queue, std::less<>());
    if (head.fresh) return head.move;
    measure_queued(run, current, {&head});
  }
}

// After `taken`: its layer is no move's layer and no source any more, and nothing is fresh.
void take(std::vector<QueuedMove>& queue, const Move& taken) {
  std::erase_if(queue, [&](const QueuedMove& item) {
    return item.move.layer == taken.layer || item.move.source == taken.layer;
  });
  for (QueuedMove& item : queue) item.fresh = false;
}

}  // namespace

void search_lazy(SearchRun& run) {
  const int keep = run.options().keep.value_or(1);
  Pattern current = run.options().start.as_nearest();
  const auto left = [&](std::int64_t num_full) { return 2 * (num_full - keep); };
  run.report(run.options().start, current.num_full() - 1 + left(current.num_full() - 1));
  run.measure(current, {current});
  auto queue = make_queue(current, MoveSources::kNearest);
  measure_queued(run, current, all_of(queue));
  while (true) {
    const Move move = settle_head(run, current, queue);
    current = current.with_shared(move.layer, move.source);
    run.commit(current, left(current.num_full()));
    if (current.num_full() == keep) return;
    for (QueuedMove& item : queue) {
      if (item.move.source == move.layer) item.move.source = move.source;
    }
    take(queue, move);
  }
}

void search_routed_lazy(SearchRun& run) {
  const int keep = run.options().keep.value_or(1);
  Pattern current = run.options().start;
  const auto width = static_cast<std::size_t>(std::sqrt(current.num_full()));
  const auto left = [&](std::int64_t num_full) {
    return (num_full - keep) * static_cast<std::int64_t>(width + 1);
  };
  auto queue = make_queue(current, MoveSources::kAny);
  run.report(current, static_cast<std::int64_t>(queue.size()) + left(current.num_full() - 1));
  measure_queued(run, current, all_of(queue));
  double budget = 0;  // in layer runs
  while (true) {
    const Move move = best_fresh(queue).move;
    current = current.with_shared(move.layer, move.source);
    run.commit(current, left(current.num_full()));
    if (current.num_full() == keep) return;
    take(queue, move);
    const auto promising = most_promising(queue, width);
    budget += kShareOfGreedy * cost_of_greedy_step(current);
    budget = std::max<double>(budget, cost(current, promising.front()->move));
    measure_queued(run, current, affordable(current, promising, budget));
    const auto rivals = better_than(best_fresh(queue), queue);
    measure_queued(run, current, affordable(current, rivals, budget));
  }
}

}  // namespace indexcache
