#include "indexcache/search/screened.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <utility>

#include "indexcache/base/error.h"
#include "indexcache/search/search_run.h"

namespace indexcache {
namespace {

void check_increases(const IncreaseMatrix& increases, const std::vector<int>& allowed) {
  for (std::size_t layer = 0; layer < increases.size(); ++layer) {
    const auto& row = increases[layer];
    if (row.size() != layer) {
      throw expectation_error(fmt::format("search: increases of layer {}", layer),
                              fmt::format("{} entries", layer), fmt::format("{}", row.size()));
    }
    for (const int source : allowed) {
      if (static_cast<std::size_t>(source) >= layer || std::isfinite(row[source])) continue;
      throw expectation_error(
          fmt::format("search: increase of the loss when layer {} reads layer {}", layer, source),
          "a finite number", fmt::format("{}", row[source]));
    }
  }
}

// Which layers are Full: [layers].
using FullLayers = std::vector<bool>;

// The Full layer that serves `layer` best.
int best_source(const IncreaseMatrix& increases, const FullLayers& full, int layer) {
  int best = 0;
  for (int source = 1; source < layer; ++source) {
    if (full[source] && increases[layer][source] < increases[layer][best]) best = source;
  }
  return best;
}

double cost(const IncreaseMatrix& increases, const FullLayers& full) {
  double sum = 0;
  for (int layer = 1; layer < std::ssize(full); ++layer) {
    if (!full[layer]) sum += increases[layer][best_source(increases, full, layer)];
  }
  return sum;
}

constexpr int kNone = -1;

// `out` becomes Shared and `in` Full, and what the pattern costs then.
struct Swap {
  int out = kNone, in = kNone;
  double cost = std::numeric_limits<double>::infinity();
};

FullLayers swapped(FullLayers full, int out, int in) {
  full[out] = false;
  if (in != kNone) full[in] = true;
  return full;
}

// Of all swaps with one of `entering`, which may be kNone, the one that costs least.
Swap best_swap(const IncreaseMatrix& increases, const std::vector<int>& allowed,
               const FullLayers& full, const std::vector<int>& entering) {
  Swap best;
  for (const int out : allowed) {
    if (out == 0 || !full[out]) continue;
    for (const int in : entering) {
      if (in != kNone && full[in]) continue;
      const double sum = cost(increases, swapped(full, out, in));
      if (sum < best.cost) best = {out, in, sum};
    }
  }
  return best;
}

Pattern pattern_of(const IncreaseMatrix& increases, const FullLayers& full) {
  std::vector<int> sources;
  for (int layer = 0; layer < std::ssize(full); ++layer) {
    sources.push_back(full[layer] ? Pattern::kFull : best_source(increases, full, layer));
  }
  return Pattern::from_sources(std::move(sources));
}

}  // namespace

std::vector<Pattern> least_increase_patterns(const IncreaseMatrix& increases,
                                             const std::vector<int>& allowed, int keep) {
  INDEXCACHE_ASSERT(!allowed.empty() && allowed.front() == 0);
  INDEXCACHE_ASSERT(allowed.back() < std::ssize(increases) && keep >= 1);
  check_increases(increases, allowed);
  FullLayers full(increases.size(), false);
  for (const int layer : allowed) full[layer] = true;
  std::vector<Pattern> patterns;
  for (int count = static_cast<int>(allowed.size()) - 1; count >= keep; --count) {
    Swap last = best_swap(increases, allowed, full, {kNone});
    full = swapped(std::move(full), last.out, last.in);
    for (Swap next = best_swap(increases, allowed, full, allowed); next.cost < last.cost;
         next = best_swap(increases, allowed, full, allowed)) {
      full = swapped(std::move(full), next.out, next.in);
      last = next;
    }
    patterns.push_back(pattern_of(increases, full));
  }
  return patterns;
}

void search_screened(SearchRun& run) {
  const Pattern& start = run.options().start;
  const IncreaseMatrix& increases = run.options().increases;
  if (static_cast<int>(increases.size()) != start.num_layers()) {
    throw expectation_error("search: increases", fmt::format("{} layers", start.num_layers()),
                            fmt::format("{}", increases.size()));
  }
  const auto patterns =
      least_increase_patterns(increases, start.full_layers(), run.options().keep.value_or(1));
  run.report(start, static_cast<std::int64_t>(patterns.size()));
  run.measure(start, patterns);
  for (const Pattern& pattern : patterns) run.commit(pattern, 0);
}

}  // namespace indexcache
