#include "indexcache/search/similarity.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/search/search_run.h"

namespace indexcache {
namespace {

void check_similarity(const SimilarityMatrix& similarity, const std::vector<int>& allowed) {
  for (std::size_t layer = 0; layer < similarity.size(); ++layer) {
    const auto& row = similarity[layer];
    if (row.size() != layer) {
      throw expectation_error(fmt::format("search: similarity of layer {}", layer),
                              fmt::format("{} entries", layer), fmt::format("{}", row.size()));
    }
    for (const int source : allowed) {
      if (static_cast<std::size_t>(source) >= layer || std::isfinite(row[source])) continue;
      throw expectation_error(fmt::format("search: similarity of layers {} and {}", layer, source),
                              "a finite number", fmt::format("{}", row[source]));
    }
  }
}

// [a][b]: the sum of S[m][allowed[a]] over the layers m between allowed[a] and ends[b].
std::vector<std::vector<double>> sums_between(const SimilarityMatrix& similarity,
                                              const std::vector<int>& allowed,
                                              const std::vector<int>& ends) {
  std::vector<std::vector<double>> sums(allowed.size(), std::vector<double>(ends.size()));
  for (std::size_t a = 0; a < allowed.size(); ++a) {
    double sum = 0;
    int layer = allowed[a] + 1;
    for (std::size_t b = a + 1; b < ends.size(); ++b) {
      for (; layer < ends[b]; ++layer) sum += similarity[layer][allowed[a]];
      sums[a][b] = sum;
    }
  }
  return sums;
}

}  // namespace

Pattern most_similar_pattern(const SimilarityMatrix& similarity, const std::vector<int>& allowed,
                             int keep) {
  const int num_layers = static_cast<int>(similarity.size());
  const int num_allowed = static_cast<int>(allowed.size());
  INDEXCACHE_ASSERT(num_allowed > 0 && allowed.front() == 0 && allowed.back() < num_layers);
  INDEXCACHE_ASSERT(keep >= 1 && keep <= num_allowed);
  check_similarity(similarity, allowed);
  // Places in `allowed`; num_allowed is the end.
  std::vector<int> ends = allowed;
  ends.push_back(num_layers);
  const auto between = sums_between(similarity, allowed, ends);

  constexpr double kNone = -std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> best(keep + 1, std::vector<double>(ends.size(), kNone));
  std::vector<std::vector<int>> last(keep + 1, std::vector<int>(ends.size(), 0));  // the best j
  best[0][0] = 0;
  for (int k = 1; k <= keep; ++k) {
    for (int i = k; i <= num_allowed; ++i) {
      for (int j = k - 1; j < i; ++j) {
        const double sum = best[k - 1][j] + between[j][i];
        if (sum > best[k][i]) {
          best[k][i] = sum;
          last[k][i] = j;
        }
      }
    }
  }
  std::vector<int> full;
  for (int k = keep, i = num_allowed; k >= 1; --k) {
    i = last[k][i];
    full.push_back(allowed[i]);
  }
  return Pattern::nearest(full, num_layers);
}

void search_similarity(SearchRun& run) {
  const Pattern& start = run.options().start;
  const SimilarityMatrix& similarity = run.options().similarity;
  if (static_cast<int>(similarity.size()) != start.num_layers()) {
    throw expectation_error("search: similarity", fmt::format("{} layers", start.num_layers()),
                            fmt::format("{}", similarity.size()));
  }
  std::vector<Pattern> patterns;
  for (int keep = start.num_full() - 1; keep >= run.options().keep.value_or(1); --keep) {
    patterns.push_back(most_similar_pattern(similarity, start.full_layers(), keep));
  }
  run.report(start, static_cast<std::int64_t>(patterns.size()));
  run.measure(start, patterns);
  for (const Pattern& pattern : patterns) run.commit(pattern, 0);
}

}  // namespace indexcache
