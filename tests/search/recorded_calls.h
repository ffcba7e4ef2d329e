// An evaluator for searches that choose by something other than losses: what they ask for is recorded.
#pragma once

#include <string>
#include <vector>

#include "indexcache/search/search.h"

namespace indexcache::testing {

struct RecordedCalls {
  std::vector<std::vector<std::string>> patterns;  // of each call

  // A pattern loses as many nats as it has Shared layers.
  Evaluate evaluate() {
    return [this](const Pattern&, const std::vector<Pattern>& candidates) {
      patterns.emplace_back();
      std::vector<Losses> losses;
      for (const Pattern& pattern : candidates) {
        patterns.back().push_back(pattern.str());
        losses.push_back({{1.0 * pattern.num_layers() - pattern.num_full()}});
      }
      return losses;
    };
  }
};

}  // namespace indexcache::testing
