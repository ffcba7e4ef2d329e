// Cross-layer overlap of index sets: the paper's appendix A.
//
//   overlap[i][j] = mean over queries t of |T(i)_t n T(j)_t| / k
//
// under the model's baseline (all layers Full, or those that have an indexer), over the queries that
// have k keys to choose from.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/data/text.h"
#include "indexcache/model/model.h"

namespace indexcache {

struct OverlapMatrix {
  std::int64_t top_k = 0;
  std::int64_t num_queries = 0;  // averaged over
  std::vector<int> layers;       // the Full layers, ascending: rows and columns
  std::vector<std::vector<double>> overlap;

  struct Summary {
    double mean = 0, lowest = 0, highest = 0;
  };
  // Over the pairs (i, i + distance) of rows.
  Summary at_distance(std::size_t distance) const;
};

// `on_sequence` (optional) is told how many sequences are done. Throws InputError if no sequence has
// k tokens.
OverlapMatrix measure_overlap(const Model& model, const std::vector<Sequence>& sequences,
                              const std::function<void(int done)>& on_sequence = {});

nlohmann::ordered_json to_json(const OverlapMatrix& matrix);
// A heat map, one cell a pair of layers, with a colour scale; each cell names its value.
std::string to_svg(const OverlapMatrix& matrix);

}  // namespace indexcache
