// ModelConfig: what config.json says, checked, in one plain struct. Every size of the model comes
// from here.
//
// Supported: model_type glm_moe_dsa (GLM-5, 5.1, 5.2, 5.3) and deepseek_v32 (DeepSeek-V3.2).
// Anything else throws InputError naming the type found and the types supported. A key that is
// absent or null takes the default of transformers' config class (5.17.0), but token ids stay
// unset.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/policy/pattern.h"

namespace indexcache {

enum class Architecture { kGlmMoeDsa, kDeepseekV32 };

std::string_view model_type(Architecture architecture);  // "glm_moe_dsa", "deepseek_v32"

enum class MlpKind { kDense, kSparse };

// YaRN (rope_type "yarn"): per-frequency blend between plain and interpolated RoPE, spec section
// 2.2. `truncate` false is refused.
struct YarnConfig {
  double factor = 1.0;
  double original_max_position_embeddings = 4096;
  double beta_fast = 32, beta_slow = 1;
  double mscale = 1, mscale_all_dim = 1;  // absent: 1 and 0

  double magnitude(double scale) const;  // m(scale) = 0.1 scale ln(factor) + 1
  // What cos and sin are multiplied by: m(mscale) / m(mscale_all_dim).
  double amplitude() const;
};

struct RopeConfig {
  double theta = 10000.0;
  std::optional<YarnConfig> yarn;
};

struct QuantizationConfig {
  std::int64_t block_rows = 128, block_columns = 128;
  bool scale_is_power_of_two = false;  // scale_fmt "ue8m0"
};

struct ModelConfig {
  Architecture architecture = Architecture::kGlmMoeDsa;

  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  int num_layers = 0;      // num_hidden_layers; MTP layers not counted
  int num_mtp_layers = 0;  // num_nextn_predict_layers: skipped with a notice
  std::int64_t num_heads = 0;
  std::int64_t q_lora_rank = 0, kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;

  std::int64_t index_num_heads = 0;  // index_n_heads
  std::int64_t index_head_dim = 0;
  std::int64_t index_topk = 0;
  bool indexer_rope_interleave = true;  // absent: true for glm_moe_dsa, false for deepseek_v32

  std::vector<MlpKind> mlp_kinds;  // [num_layers]
  std::int64_t intermediate_size = 0, moe_intermediate_size = 0;
  std::int64_t num_experts = 0, num_experts_per_token = 0, num_shared_experts = 0;
  std::int64_t num_groups = 1, topk_groups = 1;  // n_group, topk_group
  double routed_scaling_factor = 1.0;
  bool norm_topk_prob = true;

  RopeConfig rope;
  double rms_norm_eps = 1e-6;
  std::int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  std::vector<std::int64_t> eos_token_ids;
  std::optional<std::int64_t> bos_token_id, pad_token_id;

  std::optional<QuantizationConfig> quantization;

  // The checkpoint's own schedule, read from every key that states one (spec section 3.1).
  Pattern schedule = Pattern::full(1);

  // The parsed file, for writing it back.
  nlohmann::json json;

  std::int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // qk_head_dim^-1/2, times YaRN's m(mscale_all_dim)^2 (spec section 2.2).
  double softmax_scale() const;
};

// `where` names the file in errors.
ModelConfig parse_config(const nlohmann::json& json, const std::string& where);
ModelConfig read_config(const std::filesystem::path& model_folder);

// The schedule as one reader would understand config.json: an engine or a training stack and its
// rule (spec section 3.1).
struct ScheduleReading {
  std::string reader;              // "transformers", "vLLM", "SGLang", ...
  std::string key;                 // the config key it follows, "" where it knows or finds none
  std::optional<Pattern> pattern;  // none: it rejects the config, or layer 0 would not be Full
  std::string remark;
};
std::vector<ScheduleReading> read_schedule_as_engines_do(const ModelConfig& config);
// The same for a config.json that may contradict itself, which no ModelConfig does.
std::vector<ScheduleReading> read_schedule_as_engines_do(const nlohmann::json& json,
                                                         Architecture architecture, int num_layers);

// A command-line flag by which an engine follows the config's schedule whatever config.json says.
struct ScheduleFlag {
  std::string reader, flag;
  nlohmann::ordered_json value;  // as JSON text in one argument
};
// None for a routed schedule, which no engine follows.
std::vector<ScheduleFlag> schedule_flags(const ModelConfig& config);

// Makes `schedule` the config's own, in `schedule` and in `json`, where it replaces every key that
// states one:
//   nearest  index_topk_pattern and, for glm_moe_dsa, indexer_types. A deepseek_v32 config gets no
//            indexer_types: no reader of that model type follows the key. Its transformers class
//            knows no schedule at all and runs an indexer in every layer, so a folder meant for it
//            must keep all indexers.
//   routed   indexcache_sources. F/S keys could only state another, worse pattern, which other
//            engines would run without a word: they are written beside it only on request.
enum class RoutedKeys { kSourcesAlone, kNearestBeside };
void set_schedule(ModelConfig& config, const Pattern& schedule,
                  RoutedKeys routed = RoutedKeys::kSourcesAlone);

}  // namespace indexcache
