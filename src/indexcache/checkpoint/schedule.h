// The F/S schedule in config.json: one schedule, many dialects.
//
//   indexer_types           ["full" | "shared", ...]             transformers, ATOM, llama.cpp
//   index_topk_pattern      "FSSF..." or a list of such words    all but llama.cpp
//   index_topk_freq n       Full where max(layer - offset + 1, 0) mod n = 0
//   index_skip_topk_offset  its offset, 2 if absent
//   indexcache_sources      [source per layer, -1 = Full]: our own, the only one that can state a
//                           routed pattern
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "indexcache/policy/pattern.h"

namespace indexcache {

// The schedule that config.json states; all Full if it states none. Keys that contradict each other
// throw InputError with both readings. indexcache_sources may stand beside F/S keys that state
// its nearest pattern (same Full layers), the fallback for engines that do not know it.
Pattern read_schedule(const nlohmann::json& json, int num_layers, const std::string& where);

}  // namespace indexcache
