// Speed and memory of a model under several patterns, measured in turn.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/cache/sequence_cache.h"
#include "indexcache/model/model.h"
#include "indexcache/policy/pattern.h"

namespace indexcache {

struct SpeedOptions {
  std::vector<std::int64_t> contexts = {};  // ascending
  std::int64_t decode_tokens = 16;          // timed at each context, one by one
  int repeats = 3;
  std::int64_t chunk = 2048;  // of the prefill
};

// Seconds by part: the spans that the layers open (base/span.h), and "other".
using PartSeconds = std::map<std::string, double>;

struct SpeedPoint {
  std::int64_t context = 0;
  std::vector<double> prefill;              // [repeats] seconds for all `context` tokens
  std::vector<double> decode;               // [repeats] seconds a token after them
  PartSeconds prefill_parts, decode_parts;  // means over the repeats
  CacheBytes cache;                         // of `context` tokens
};

struct PatternSpeed {
  std::string name;
  Pattern pattern;
  std::vector<SpeedPoint> points;  // [contexts]
};

struct NamedPattern {
  std::string name;
  Pattern pattern;
};

// Each repeat runs every pattern once, one after the other (A B A B ...), so that a drift of the
// machine's speed falls on all of them. A run prefills up to the longest context, stops at each
// context to decode from there, and goes on: the prefill time of a context is the sum of its
// stretches. `tokens` are run, from the beginning again where they are too few; each pattern is
// warmed up first. On a GPU the split by part, which waits for the device at each part's end, is
// taken in a run of its own. on_progress(tokens done, tokens in all).
std::vector<PatternSpeed> measure_speed(
    const Model& model, const std::vector<NamedPattern>& patterns,
    const std::vector<std::int32_t>& tokens, const SpeedOptions& options,
    const std::function<void(std::int64_t, std::int64_t)>& on_progress = {});

// The first pattern is the baseline. A speed-up is the baseline's time by the pattern's in the same
// repeat: median, least and largest.
nlohmann::json speed_json(const std::vector<PatternSpeed>& patterns);
std::string speed_table(const std::vector<PatternSpeed>& patterns);

}  // namespace indexcache
