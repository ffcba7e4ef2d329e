#include "indexcache/checkpoint/config.h"

#include <algorithm>
#include <cmath>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/config_reader.h"
#include "indexcache/checkpoint/schedule.h"
#include "indexcache/checkpoint/strict_json.h"

namespace indexcache {
namespace {

// Bounds far above any model, so that products of sizes fit in 64 bits and a hostile config costs
// nothing.
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxIntermediate = std::int64_t{1} << 24;
constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 28;
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxExperts = std::int64_t{1} << 16;
constexpr std::int64_t kMaxContext = INT32_MAX;

// Where the two classes of transformers differ in their defaults.
struct Defaults {
  std::int64_t vocab_size, hidden_size, intermediate_size, num_layers, num_heads, q_lora_rank,
      v_head_dim, qk_nope_head_dim, n_group, topk_group, max_position_embeddings, index_num_heads;
  double rms_norm_eps;
  bool indexer_rope_interleave;
};
constexpr Defaults kGlmDefaults = {154880, 6144, 12288, 78,     64, 2048, 256,
                                   192,    1,    1,     202752, 32, 1e-5, true};
constexpr Defaults kDeepseekDefaults = {129280, 7168, 18432, 61,     128, 1536, 128,
                                        128,    8,    4,     163840, 64,  1e-6, false};

Architecture read_architecture(const ConfigReader& reader) {
  const auto type = reader.text("model_type", "");
  for (const auto known : {Architecture::kGlmMoeDsa, Architecture::kDeepseekV32}) {
    if (type == model_type(known)) return known;
  }
  throw expectation_error(
      reader.at("model_type"),
      "glm_moe_dsa (GLM-5, 5.1, 5.2, 5.3) or deepseek_v32 (DeepSeek-V3.2): these are supported",
      type.empty() ? "none" : quote(type));
}

// Keys that must have one value, because the forward pass knows only that one.
void check_fixed_keys(const ConfigReader& reader, const ModelConfig& config) {
  reader.require_text("hidden_act", "silu");
  reader.require_text("scoring_func", "sigmoid");
  reader.require_text("topk_method", "noaux_tc");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (reader.flag(key, false)) throw expectation_error(reader.at(key), "false", "true");
  }
  if (!reader.flag("rope_interleave", true)) {
    throw expectation_error(reader.at("rope_interleave"), "true", "false");
  }
  reader.require_integer("moe_layer_freq", 1);
  reader.require_integer("index_kpool", 1, " (pooled index keys are not supported)");
  reader.require_integer("num_key_value_heads", config.num_heads, " (num_attention_heads)");
  reader.require_integer("qk_head_dim", config.qk_head_dim(),
                         " (qk_nope_head_dim + qk_rope_head_dim)");
  for (const auto& type : reader.texts("layer_types", config.num_layers)) {
    if (type != "deepseek_sparse_attention") {
      throw expectation_error(reader.at("layer_types"), "\"deepseek_sparse_attention\" only",
                              quote(type));
    }
  }
}

void read_sizes(const ConfigReader& reader, const Defaults& defaults, ModelConfig& config) {
  config.vocab_size = reader.integer("vocab_size", defaults.vocab_size, 1, kMaxVocabulary);
  config.hidden_size = reader.integer("hidden_size", defaults.hidden_size, 1, kMaxWidth);
  config.num_layers =
      static_cast<int>(reader.integer("num_hidden_layers", defaults.num_layers, 1, kMaxLayers));
  config.num_mtp_layers =
      static_cast<int>(reader.integer("num_nextn_predict_layers", 0, 0, kMaxLayers));
  config.num_heads = reader.integer("num_attention_heads", defaults.num_heads, 1, kMaxWidth);
  config.q_lora_rank = reader.integer("q_lora_rank", defaults.q_lora_rank, 1, kMaxWidth);
  config.kv_lora_rank = reader.integer("kv_lora_rank", 512, 1, kMaxWidth);
  config.qk_nope_head_dim =
      reader.integer("qk_nope_head_dim", defaults.qk_nope_head_dim, 1, kMaxWidth);
  config.qk_rope_head_dim = reader.integer("qk_rope_head_dim", 64, 2, kMaxWidth);
  config.v_head_dim = reader.integer("v_head_dim", defaults.v_head_dim, 1, kMaxWidth);
  config.index_num_heads = reader.integer("index_n_heads", defaults.index_num_heads, 1, kMaxWidth);
  config.index_head_dim = reader.integer("index_head_dim", 128, 1, kMaxWidth);
  config.index_topk = reader.integer("index_topk", 2048, 1, kMaxContext);
  config.indexer_rope_interleave =
      reader.flag("indexer_rope_interleave", defaults.indexer_rope_interleave);
  config.max_position_embeddings =
      reader.integer("max_position_embeddings", defaults.max_position_embeddings, 1, kMaxContext);
  config.rms_norm_eps = reader.positive_number("rms_norm_eps", defaults.rms_norm_eps);
  config.tie_word_embeddings = reader.flag("tie_word_embeddings", false);

  if (config.qk_rope_head_dim % 2 != 0) {
    throw expectation_error(reader.at("qk_rope_head_dim"), "an even number",
                            fmt::format("{}", config.qk_rope_head_dim));
  }
  if (config.index_head_dim < config.qk_rope_head_dim) {
    throw expectation_error(reader.at("index_head_dim"),
                            fmt::format("at least qk_rope_head_dim, {}", config.qk_rope_head_dim),
                            fmt::format("{}", config.index_head_dim));
  }
}

std::vector<MlpKind> read_mlp_kinds(const ConfigReader& reader, int num_layers) {
  const auto first_sparse = reader.integer("first_k_dense_replace", 3, 0, kMaxLayers);
  std::vector<MlpKind> kinds(num_layers, MlpKind::kSparse);
  for (int layer = 0; layer < num_layers && layer < first_sparse; ++layer) {
    kinds[layer] = MlpKind::kDense;
  }
  const auto types = reader.texts("mlp_layer_types", num_layers);
  for (std::size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] != "dense" && types[layer] != "sparse") {
      throw expectation_error(fmt::format("{}: layer {}", reader.at("mlp_layer_types"), layer),
                              "\"dense\" or \"sparse\"", quote(types[layer]));
    }
    kinds[layer] = types[layer] == "dense" ? MlpKind::kDense : MlpKind::kSparse;
  }
  return kinds;
}

void read_experts(const ConfigReader& reader, const Defaults& defaults, ModelConfig& config) {
  config.intermediate_size =
      reader.integer("intermediate_size", defaults.intermediate_size, 1, kMaxIntermediate);
  config.moe_intermediate_size = reader.integer("moe_intermediate_size", 2048, 1, kMaxIntermediate);
  config.num_experts = reader.aliased_integer(
      {"n_routed_experts", "num_local_experts", "num_experts"}, 256, 1, kMaxExperts);
  config.num_shared_experts = reader.integer("n_shared_experts", 1, 0, 4096);
  config.num_groups = reader.integer("n_group", defaults.n_group, 1, config.num_experts);
  config.topk_groups = reader.integer("topk_group", defaults.topk_group, 1, config.num_groups);
  config.routed_scaling_factor = reader.positive_number("routed_scaling_factor", 2.5);
  config.norm_topk_prob = reader.flag("norm_topk_prob", true);

  const auto group_size = config.num_experts / config.num_groups;
  if (config.num_experts % config.num_groups != 0 || (config.num_groups > 1 && group_size < 2)) {
    throw expectation_error(
        reader.at("n_group"),
        fmt::format("groups of equal size, two experts or more, out of {}", config.num_experts),
        fmt::format("{}", config.num_groups));
  }
  config.num_experts_per_token =
      reader.integer("num_experts_per_tok", 8, 1, config.topk_groups * group_size);
}

RopeConfig read_rope(const ConfigReader& reader, std::int64_t max_position_embeddings) {
  // transformers 5 nests everything in rope_parameters; older files have rope_theta at the top and
  // rope_scaling beside it. Where a number stands twice, both must agree.
  const MergedReader rope(reader, {"rope_parameters", "rope_scaling"});
  RopeConfig config;
  config.theta = rope.number_here_or_above("rope_theta", 10000.0);
  if (config.theta <= 1) {
    throw expectation_error(rope.at("rope_theta"), "more than 1", fmt::format("{}", config.theta));
  }
  if (rope.number("partial_rotary_factor", 1.0) != 1.0) {
    throw expectation_error(rope.at("partial_rotary_factor"), "1", "another value");
  }
  const auto type = rope.text({"rope_type", "type"}, "default");
  if (type == "default") return config;
  if (type != "yarn") {
    throw expectation_error(rope.at("rope_type"), "\"default\" or \"yarn\"", quote(type));
  }

  YarnConfig yarn;
  yarn.original_max_position_embeddings =
      rope.number("original_max_position_embeddings", static_cast<double>(max_position_embeddings));
  yarn.factor = rope.number("factor", static_cast<double>(max_position_embeddings) /
                                          yarn.original_max_position_embeddings);
  yarn.beta_fast = rope.number("beta_fast", 32);
  yarn.beta_slow = rope.number("beta_slow", 1);
  yarn.mscale_all_dim = rope.number("mscale_all_dim", 0);
  // transformers' rule: only both together make a ratio, else the amplitude is m(1).
  yarn.mscale = yarn.mscale_all_dim == 0 ? 1 : rope.number("mscale", 0);
  const auto require = [&](const char* key, bool good, const char* expected, double found) {
    if (!good) throw expectation_error(rope.at(key), expected, fmt::format("{}", found));
  };
  require("original_max_position_embeddings", yarn.original_max_position_embeddings >= 1,
          "1 or more", yarn.original_max_position_embeddings);
  require("factor", yarn.factor >= 1, "1 or more", yarn.factor);
  require("beta_slow", yarn.beta_slow > 0, "a positive number", yarn.beta_slow);
  require("beta_fast", yarn.beta_fast >= yarn.beta_slow, "at least beta_slow", yarn.beta_fast);
  require("mscale", yarn.mscale > 0, "a positive number beside mscale_all_dim", yarn.mscale);
  require("mscale_all_dim", yarn.mscale_all_dim >= 0, "0 or more", yarn.mscale_all_dim);
  require("attention_factor", rope.number("attention_factor", yarn.amplitude()) == yarn.amplitude(),
          "the factor that mscale and mscale_all_dim make, or none",
          rope.number("attention_factor", 1));
  if (!rope.flag("truncate", true)) {
    throw expectation_error(rope.at("truncate"), "true", "false");
  }
  config.yarn = yarn;
  return config;
}

std::optional<QuantizationConfig> read_quantization(const ConfigReader& reader) {
  const auto nested = reader.object("quantization_config");
  if (!nested) return std::nullopt;
  if (const auto method = nested->text("quant_method", ""); method != "fp8") {
    throw expectation_error(nested->at("quant_method"), "\"fp8\" (E4M3 with block scales)",
                            quote(method));
  }
  nested->require_text("fmt", "e4m3");
  QuantizationConfig config;
  const auto blocks = nested->integers("weight_block_size");
  if (!blocks.empty()) {
    const bool good = blocks.size() == 2 && std::all_of(blocks.begin(), blocks.end(), [](auto n) {
                        return n >= 1 && n <= kMaxIntermediate;
                      });
    if (!good) {
      throw expectation_error(nested->at("weight_block_size"), "two positive integers",
                              json_excerpt(nlohmann::json(blocks)));
    }
    config.block_rows = blocks[0];
    config.block_columns = blocks[1];
  }
  const auto format = nested->text("scale_fmt", "float");
  if (format != "ue8m0" && format != "float") {
    throw expectation_error(nested->at("scale_fmt"), "\"ue8m0\" or \"float\"", quote(format));
  }
  config.scale_is_power_of_two = format == "ue8m0";
  return config;
}

}  // namespace

std::string_view model_type(Architecture architecture) {
  return architecture == Architecture::kGlmMoeDsa ? "glm_moe_dsa" : "deepseek_v32";
}

double YarnConfig::magnitude(double scale) const {
  return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

double YarnConfig::amplitude() const { return magnitude(mscale) / magnitude(mscale_all_dim); }

double ModelConfig::softmax_scale() const {
  const double scale = 1.0 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (!rope.yarn) return scale;
  const double m = rope.yarn->magnitude(rope.yarn->mscale_all_dim);
  return scale * m * m;
}

ModelConfig parse_config(const nlohmann::json& json, const std::string& where) {
  if (!json.is_object()) throw expectation_error(where, "a JSON object", json_excerpt(json));
  const ConfigReader reader(json, where);
  ModelConfig config;
  config.architecture = read_architecture(reader);
  const auto& defaults =
      config.architecture == Architecture::kGlmMoeDsa ? kGlmDefaults : kDeepseekDefaults;
  read_sizes(reader, defaults, config);
  config.mlp_kinds = read_mlp_kinds(reader, config.num_layers);
  read_experts(reader, defaults, config);
  check_fixed_keys(reader, config);
  config.rope = read_rope(reader, config.max_position_embeddings);
  config.eos_token_ids = reader.token_ids("eos_token_id");
  config.bos_token_id = reader.token_id("bos_token_id");
  config.pad_token_id = reader.token_id("pad_token_id");
  config.quantization = read_quantization(reader);
  config.schedule = read_schedule(json, config.num_layers, where);
  config.json = json;
  return config;
}

ModelConfig read_config(const std::filesystem::path& model_folder) {
  const auto path = model_folder / "config.json";
  if (std::error_code ignored; !std::filesystem::exists(path, ignored)) {
    throw expectation_error(model_folder.string(), "a model folder with a config.json", "none");
  }
  return parse_config(parse_json_strictly(read_file(path), path.string()), path.string());
}

}  // namespace indexcache
