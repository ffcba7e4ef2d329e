// The run config of `indexcache train`: one JSON object that says which model is trained, on what,
// and how. Unknown keys and values out of range throw InputError naming the key.
//
//   model               the model's config.json (glm_moe_dsa or deepseek_v32)
//   weights             what identifies the weights that the run starts from (put there by
//                       `indexcache distill`), so that it is not resumed from others
//   pattern             whose index set each layer reads, in the grammar of --pattern; default: the
//                       model's own schedule
//   index_loss          "multi", "average" or "own": whose attention an indexer learns (forward.h)
//   seed                of the initial weights and of the data
//   precision           "bf16" (compute; fp32 masters) or "fp32"
//   data                retrieval_share of the sequences is generated retrieval, of a number of keys
//                       drawn from `keys`; single_needle_share and variable_tracking_share of them
//                       are of those tasks, the rest multi-key needles. answer_weight: of an
//                       answer's token in the loss, where other tokens weigh 1
//   optimizer           AdamW: beta1, beta2, eps, weight_decay (matrices alone), clip (global norm,
//                       model and indexers apart)
//   expert_bias_rate    of the auxiliary-loss-free balancing (DeepSeek-V3): after each step the
//                       selection bias of an expert moves by rate * sign(mean load - its load)
//   stages              in order; each {kind: "lm" | "indexer" | "sparse" | "sparse-indexer",
//                       phases, learning_rate, indexer_learning_rate, warmup, flat,
//                       decay: "cosine" | "linear", final, fp8_aware}
//   stages[].phases     {context, sequences} and a budget: `tokens` or `minutes`
//   export              {dtype: "bf16" | "fp8", shard_megabytes,
//                       unused_indexers: "keep" | "drop" (those that the start model has in layers
//                       that became Shared),
//                       nearest_keys: true writes a routed pattern's nearest one beside it, for
//                       engines that know only that kind}
//   log_steps, checkpoint_seconds, checkpoint_steps (0: off)
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/checkpoint/config.h"
#include "indexcache/train/forward.h"

namespace indexcache {

enum class Precision { kFp32, kBf16 };
enum class BudgetUnit { kTokens, kMinutes };
enum class Decay { kCosine, kLinear };
enum class Fp8Training { kOff, kFakeQuantized };  // straight-through 128 x 128 blocks
enum class ExportDType { kBf16, kFp8 };
enum class UnusedIndexers { kKeep, kDrop };

struct DataConfig {
  double retrieval_share = 0.0;
  double single_needle_share = 0.0, variable_tracking_share = 0.0;
  std::vector<int> keys = {2, 4, 8, 16};
  double answer_weight = 1.0;
};

struct OptimizerConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0;
};

struct Phase {
  std::int64_t context = 0, sequences = 0;
  double budget = 0;  // tokens or seconds
};

// Linear from 0 over the first `warmup` of the stage's budget, flat until `flat` of it, then down
// to `final` of the peak at its end.
struct RateSchedule {
  double peak = 0, warmup = 0, flat = 1, final = 1;
  Decay decay = Decay::kCosine;
};
// The rate as a share of the peak, `progress` in [0, 1].
double rate_factor(const RateSchedule& schedule, double progress);

struct Stage {
  StageKind kind = StageKind::kLanguageModel;
  std::vector<Phase> phases;
  BudgetUnit unit = BudgetUnit::kTokens;  // of all its phases
  RateSchedule schedule;
  double indexer_peak = 0;  // the indexers' peak rate
  Fp8Training fp8 = Fp8Training::kOff;

  double budget() const;
};
std::string_view stage_name(StageKind kind);  // "lm", "indexer", "sparse", "sparse-indexer"

struct RunConfig {
  ModelConfig model;
  Pattern pattern = Pattern::full(1);
  IndexLoss index_loss = IndexLoss::kMulti;
  std::uint64_t seed = 1;
  Precision precision = Precision::kFp32;
  DataConfig data;
  OptimizerConfig optimizer;
  double expert_bias_rate = 0.001;
  std::vector<Stage> stages;
  ExportDType export_dtype = ExportDType::kBf16;
  UnusedIndexers unused_indexers = UnusedIndexers::kKeep;
  RoutedKeys routed_keys = RoutedKeys::kSourcesAlone;
  std::int64_t shard_bytes = std::int64_t{4} << 30;
  std::int64_t log_steps = 10;
  double checkpoint_seconds = 60;
  std::int64_t checkpoint_steps = 0;

  nlohmann::json json;  // as read: a resumed run must have the same
};

RunConfig parse_run_config(const nlohmann::json& json, const std::string& where);
RunConfig read_run_config(const std::filesystem::path& file);
nlohmann::json read_json_file(const std::filesystem::path& file);
// Every budget in minutes times one factor, so that their sum is `minutes`. Throws InputError if
// none is in minutes.
void scale_to_minutes(RunConfig& config, double minutes);

}  // namespace indexcache
