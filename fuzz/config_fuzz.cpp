// Any text as a config.json: refused with an InputError, or a config whose schedule can be rewritten
// and read by every engine's rule. The engines' rules also see configs that are refused.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/strict_json.h"
#include "indexcache/checkpoint/tensor_table.h"

namespace {

void check_schedules(indexcache::ModelConfig config) {
  using namespace indexcache;
  if (config.schedule.num_layers() != config.num_layers || !config.schedule.is_full(0)) {
    std::abort();
  }
  const auto schedule = config.schedule;
  for (const auto& pattern : {schedule, schedule.as_nearest(), Pattern::full(config.num_layers)}) {
    set_schedule(config, pattern);
    if (parse_config(config.json, "rewritten").schedule != pattern) std::abort();
  }
}

void check_sizes(const indexcache::ModelConfig& config) {
  using namespace indexcache;
  if (!(config.softmax_scale() > 0) || !std::isfinite(config.softmax_scale())) std::abort();
  for (const auto& tensors :
       {outer_tensors(config), layer_tensors(config, 0), indexer_tensors(config, 0),
        expert_tensors(config, config.num_layers - 1, ExpertLayout::kFused)}) {
    for (const auto& tensor : tensors) {
      std::int64_t count = 1;
      for (const auto dimension : tensor.shape) {
        if (dimension < 1 || __builtin_mul_overflow(count, dimension, &count)) std::abort();
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace indexcache;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto json = parse_json_strictly(text, "input");
    if (json.is_object()) {
      for (const auto architecture : {Architecture::kGlmMoeDsa, Architecture::kDeepseekV32}) {
        read_schedule_as_engines_do(json, architecture, 5);
      }
    }
    const auto config = parse_config(json, "input");
    check_sizes(config);
    check_schedules(config);
  } catch (const InputError&) {
  }
  return 0;
}
