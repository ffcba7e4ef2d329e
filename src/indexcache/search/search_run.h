// SearchRun: what the strategies share. It knows every loss measured so far, counts evaluations and
// collects the committed patterns.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "indexcache/search/search.h"

namespace indexcache {

struct Move {
  int layer = 0;
  int source = 0;
};

enum class MoveSources { kNearest, kAny };

// The moves of a pattern, ascending by layer, then source. kNearest: the nearest earlier Full layer
// alone; on a nearest pattern such a move gives a nearest pattern.
std::vector<Move> moves_of(const Pattern& pattern, MoveSources sources);
std::vector<Pattern> apply_moves(const Pattern& pattern, const std::vector<Move>& moves);

class SearchRun {
 public:
  SearchRun(const SearchOptions& options, const Evaluate& evaluate,
            const std::function<void(const SearchProgress&)>& on_step);

  const SearchOptions& options() const { return options_; }

  // Evaluates those of `candidates` that are not known yet, in one call.
  void measure(const Pattern& current, const std::vector<Pattern>& candidates);
  double loss(const Pattern& pattern) const { return known_.at(pattern).mean(); }
  // Measures the candidates and returns the index of the lowest loss, the first one on ties.
  std::size_t measure_best(const Pattern& current, const std::vector<Pattern>& candidates);

  // Tells `on_step` where the search stands and how many evaluations it expects from here on. Every
  // strategy does so before its first step; commit() does it too.
  void report(const Pattern& current, std::int64_t evaluations_left);
  // Records `pattern`, already measured, as the result at its number of Full layers.
  void commit(const Pattern& pattern, std::int64_t evaluations_left);
  SearchResult take_result();

 private:
  const SearchOptions& options_;
  const Evaluate& evaluate_;
  const std::function<void(const SearchProgress&)>& on_step_;
  std::map<Pattern, Losses> known_;
  SearchResult result_;
};

// The first layer of one of `num_blocks` blocks as equal as can be.
inline int first_layer_of_block(int block, int num_blocks, int num_layers) {
  return block * num_layers / num_blocks;
}

// The strategies (search.h); each commits what it finds.
void search_exact(SearchRun& run, MoveSources sources);
void search_blocked(SearchRun& run);
void search_forward(SearchRun& run);
void search_descent(SearchRun& run);
void search_lazy(SearchRun& run);
void search_routed_lazy(SearchRun& run);
void search_similarity(SearchRun& run);
void search_screened(SearchRun& run);

}  // namespace indexcache
