// The strategies that trust earlier measurements: lazy and routed-lazy.
//
// A move's increase is the loss after it minus the loss before it. Increases measured at an earlier
// pattern are no bounds on today's, only a good order to look in.
//
// How much routed-lazy measures again in a step is a compromise found on toy losses of 12 to 32
// layers (tests/calibrate/layer_runs_test.cpp): 2 sqrt(n) moves, n the Full layers of the start
// schedule, and at most two of one layer, as the sources of a layer that matters little all look
// good and would crowd out the rest.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <vector>

#include "indexcache/search/search_run.h"

namespace indexcache {
namespace {

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
  const auto width = static_cast<int>(2 * std::sqrt(current.num_full()));
  const auto left = [&](std::int64_t num_full) { return (num_full - keep) * (width + 1); };
  auto queue = make_queue(current, MoveSources::kAny);
  run.report(current, static_cast<std::int64_t>(queue.size()) + left(current.num_full() - 1));
  measure_queued(run, current, all_of(queue));
  while (true) {
    const Move move = settle_head(run, current, queue);
    current = current.with_shared(move.layer, move.source);
    run.commit(current, left(current.num_full()));
    if (current.num_full() == keep) return;
    take(queue, move);
    measure_queued(run, current, most_promising(queue, width));
  }
}

}  // namespace indexcache
