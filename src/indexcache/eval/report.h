// What an evaluation found, for people and for machines.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/eval/evaluate.h"

namespace indexcache {

struct NamedScores {
  std::string name;  // as the user wrote the pattern
  PatternScores scores;
};

// {"text": {windows, tokens, bytes, context}, "patterns": [{name, pattern, num_full, language,
// tasks}]}. The first pattern is the baseline; the others carry the difference from it on the same
// inputs. Every figure is {"value", "standard_error"}, standard_error null where it has none.
//   language: loss (nats a token) and bits_per_byte of all scored tokens together, loss by
//             position, bits per byte by domain
//   tasks:    accuracy (share of the questions answered right) and loss, means over prompts
nlohmann::json eval_json(const EvalInputs& inputs, const std::vector<NamedScores>& patterns);

// The same as text tables.
std::string eval_table(const EvalInputs& inputs, const std::vector<NamedScores>& patterns);

}  // namespace indexcache
