#include "indexcache/train/run_config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <numbers>
#include <optional>
#include <utility>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"

namespace indexcache {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kFp8Block = 128;
// Far beyond any use, and no product of two of them overflows.
constexpr std::int64_t kMostKeys = 1'000'000, kMostSequences = 1'000'000;
constexpr std::int64_t kMostShardMegabytes = 1'000'000;

// One JSON object whose keys are taken one by one; done() throws if some are left.
class Reader {
 public:
  Reader(const nlohmann::json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) throw expectation_error(where_, "an object", json.type_name());
  }

  std::string at(const std::string& key) const { return where_ + ": " + key; }

  const nlohmann::json* find(const std::string& key) {
    seen_.push_back(key);
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }
  const nlohmann::json& need(const std::string& key, const char* expected) {
    const auto* value = find(key);
    if (value == nullptr) throw expectation_error(at(key), expected, "nothing");
    return *value;
  }

  // `fallback` none: the key must be there.
  double number(const std::string& key, std::optional<double> fallback, double low, double high) {
    const auto expected = high == kInfinity ? fmt::format("a number of at least {}", low)
                                            : fmt::format("a number from {} to {}", low, high);
    const auto* value = find(key);
    if (value == nullptr) {
      if (!fallback) throw expectation_error(at(key), expected, "nothing");
      return *fallback;
    }
    if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high)) {
      throw expectation_error(at(key), expected, value->dump());
    }
    return value->get<double>();
  }

  std::int64_t integer(const std::string& key, std::optional<std::int64_t> fallback,
                       std::int64_t low,
                       std::int64_t high = std::numeric_limits<std::int64_t>::max()) {
    const auto expected = high == std::numeric_limits<std::int64_t>::max()
                              ? fmt::format("an integer of at least {}", low)
                              : fmt::format("an integer from {} to {}", low, high);
    const auto* value = find(key);
    if (value == nullptr) {
      if (!fallback) throw expectation_error(at(key), expected, "nothing");
      return *fallback;
    }
    // An unsigned value beyond int64 would wrap.
    const bool too_large = value->is_number_unsigned() &&
                           value->get<std::uint64_t>() > static_cast<std::uint64_t>(high);
    if (!value->is_number_integer() || too_large || value->get<std::int64_t>() < low ||
        value->get<std::int64_t>() > high) {
      throw expectation_error(at(key), expected, value->dump());
    }
    return value->get<std::int64_t>();
  }

  bool flag(const std::string& key) {
    const auto* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) throw expectation_error(at(key), "true or false", value->dump());
    return value->get<bool>();
  }

  template <typename T>
  T choice(const std::string& key, std::optional<T> fallback,
           std::initializer_list<std::pair<const char*, T>> choices) {
    std::string expected;
    for (const auto& [name, value] : choices) {
      expected += fmt::format("{}\"{}\"", expected.empty() ? "" : " or ", name);
    }
    const auto* found = find(key);
    if (found == nullptr && fallback) return *fallback;
    for (const auto& [name, value] : choices) {
      if (found != nullptr && *found == name) return value;
    }
    throw expectation_error(at(key), expected, found == nullptr ? "nothing" : found->dump());
  }

  void done() const {
    for (const auto& [key, value] : json_.items()) {
      if (std::find(seen_.begin(), seen_.end(), key) == seen_.end()) {
        throw expectation_error(where_, fmt::format("keys {}", fmt::join(seen_, ", ")), key);
      }
    }
  }

 private:
  const nlohmann::json& json_;
  std::string where_;
  std::vector<std::string> seen_;
};

DataConfig parse_data(const nlohmann::json& json, const std::string& where) {
  Reader reader(json, where);
  DataConfig data;
  data.retrieval_share = reader.number("retrieval_share", 0.0, 0, 1);
  data.single_needle_share = reader.number("single_needle_share", 0.0, 0, 1);
  data.variable_tracking_share = reader.number("variable_tracking_share", 0.0, 0, 1);
  data.answer_weight = reader.number("answer_weight", 1.0, 0, kInfinity);
  if (data.single_needle_share + data.variable_tracking_share > 1) {
    throw expectation_error(
        where + ": single_needle_share + variable_tracking_share", "at most 1",
        fmt::format("{}", data.single_needle_share + data.variable_tracking_share));
  }
  if (const auto* keys = reader.find("keys")) {
    data.keys.clear();
    const auto expected = fmt::format("a list of integers from 1 to {}", kMostKeys);
    if (!keys->is_array() || keys->empty()) {
      throw expectation_error(reader.at("keys"), expected, keys->dump());
    }
    for (const auto& key : *keys) {
      if (!key.is_number_integer() || key.get<std::int64_t>() < 1 ||
          key.get<std::int64_t>() > kMostKeys) {
        throw expectation_error(reader.at("keys"), expected, keys->dump());
      }
      data.keys.push_back(key.get<int>());
    }
  }
  reader.done();
  return data;
}

OptimizerConfig parse_optimizer(const nlohmann::json& json, const std::string& where) {
  Reader reader(json, where);
  OptimizerConfig optimizer;
  optimizer.beta1 = reader.number("beta1", optimizer.beta1, 0, 1);
  optimizer.beta2 = reader.number("beta2", optimizer.beta2, 0, 1);
  optimizer.eps = reader.number("eps", optimizer.eps, 0, 1);
  optimizer.weight_decay = reader.number("weight_decay", optimizer.weight_decay, 0, kInfinity);
  optimizer.clip = reader.number("clip", optimizer.clip, 0, kInfinity);
  reader.done();
  return optimizer;
}

Phase parse_phase(const nlohmann::json& json, const std::string& where, const ModelConfig& model,
                  std::optional<BudgetUnit>& unit) {
  Reader reader(json, where);
  Phase phase;
  phase.context = reader.integer("context", std::nullopt, 1);
  phase.sequences = reader.integer("sequences", std::nullopt, 1, kMostSequences);
  const bool tokens = json.contains("tokens");
  if (tokens == json.contains("minutes")) {
    throw expectation_error(where, "a budget, either tokens or minutes",
                            tokens ? "both" : "neither");
  }
  phase.budget = tokens ? reader.number("tokens", std::nullopt, 1, kInfinity)
                        : 60 * reader.number("minutes", std::nullopt, 0, kInfinity);
  const auto own = tokens ? BudgetUnit::kTokens : BudgetUnit::kMinutes;
  if (unit && *unit != own) {
    throw expectation_error(where, "the same unit of budget in all phases of a stage",
                            "tokens and minutes");
  }
  unit = own;
  if (phase.context > model.max_position_embeddings) {
    throw expectation_error(reader.at("context"),
                            fmt::format("at most the model's max_position_embeddings, {}",
                                        model.max_position_embeddings),
                            fmt::format("{}", phase.context));
  }
  reader.done();
  return phase;
}

Stage parse_stage(const nlohmann::json& json, const std::string& where, const ModelConfig& model) {
  Reader reader(json, where);
  Stage stage;
  stage.kind = reader.choice<StageKind>("kind", std::nullopt,
                                        {{"lm", StageKind::kLanguageModel},
                                         {"indexer", StageKind::kIndexerWarmup},
                                         {"sparse", StageKind::kSparse},
                                         {"sparse-indexer", StageKind::kSparseIndexer}});
  stage.schedule.peak = reader.number("learning_rate", std::nullopt, 0, kInfinity);
  stage.indexer_peak = reader.number("indexer_learning_rate", stage.schedule.peak, 0, kInfinity);
  stage.schedule.warmup = reader.number("warmup", 0.0, 0, 1);
  stage.schedule.flat = reader.number("flat", 1.0, 0, 1);
  stage.schedule.final = reader.number("final", 1.0, 0, 1);
  stage.schedule.decay = reader.choice<Decay>(
      "decay", Decay::kCosine, {{"cosine", Decay::kCosine}, {"linear", Decay::kLinear}});
  if (reader.flag("fp8_aware")) stage.fp8 = Fp8Training::kFakeQuantized;
  const auto& phases = reader.need("phases", "a list of phases");
  if (!phases.is_array() || phases.empty()) {
    throw expectation_error(reader.at("phases"), "a list of phases", phases.dump());
  }
  std::optional<BudgetUnit> unit;
  for (std::size_t i = 0; i < phases.size(); ++i) {
    stage.phases.push_back(
        parse_phase(phases[i], fmt::format("{}: phases[{}]", where, i), model, unit));
  }
  stage.unit = *unit;
  reader.done();
  return stage;
}

// What the trainer cannot do, or an FP8 folder cannot hold.
void check_model(const RunConfig& config, const std::string& where) {
  const auto& model = config.model;
  if (model.tie_word_embeddings) {
    throw expectation_error(where + ": model: tie_word_embeddings", "false", "true");
  }
  if (model.quantization) {
    throw expectation_error(where + ": model: quantization_config",
                            "nothing (export.dtype says how it is stored)", "one");
  }
  const bool fp8 = config.export_dtype == ExportDType::kFp8 ||
                   std::any_of(config.stages.begin(), config.stages.end(), [](const Stage& stage) {
                     return stage.fp8 == Fp8Training::kFakeQuantized;
                   });
  if (!fp8) return;
  const std::pair<const char*, std::int64_t> sizes[] = {
      {"hidden_size", model.hidden_size},
      {"q_lora_rank", model.q_lora_rank},
      {"kv_lora_rank", model.kv_lora_rank},
      {"num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)",
       model.num_heads * model.qk_head_dim()},
      {"num_attention_heads * (qk_nope_head_dim + v_head_dim)",
       model.num_heads * (model.qk_nope_head_dim + model.v_head_dim)},
      {"num_attention_heads * v_head_dim", model.num_heads * model.v_head_dim},
      {"index_head_dim", model.index_head_dim},
      {"intermediate_size", model.intermediate_size},
      {"moe_intermediate_size", model.moe_intermediate_size}};
  for (const auto& [name, size] : sizes) {
    if (size % kFp8Block != 0) {
      throw expectation_error(fmt::format("{}: model: {}", where, name),
                              "a multiple of 128 for an FP8 folder", fmt::format("{}", size));
    }
  }
}

}  // namespace

double rate_factor(const RateSchedule& schedule, double progress) {
  if (progress < schedule.warmup) return progress / schedule.warmup;
  if (progress <= schedule.flat || schedule.flat >= 1) return 1;
  const double share = std::min(1.0, (progress - schedule.flat) / (1 - schedule.flat));
  const double down =
      schedule.decay == Decay::kLinear ? 1 - share : 0.5 * (1 + std::cos(std::numbers::pi * share));
  return schedule.final + (1 - schedule.final) * down;
}

double Stage::budget() const {
  double sum = 0;
  for (const auto& phase : phases) sum += phase.budget;
  return sum;
}

std::string_view stage_name(StageKind kind) {
  switch (kind) {
    case StageKind::kLanguageModel:
      return "lm";
    case StageKind::kIndexerWarmup:
      return "indexer";
    case StageKind::kSparse:
      return "sparse";
    case StageKind::kSparseIndexer:
      return "sparse-indexer";
  }
  INDEXCACHE_ASSERT(false);
}

RunConfig parse_run_config(const nlohmann::json& json, const std::string& where) {
  Reader reader(json, where);
  RunConfig config;
  config.json = json;
  config.model = parse_config(reader.need("model", "the model's config"), where + ": model");
  reader.find("weights");
  config.pattern = config.model.schedule;
  if (const auto* pattern = reader.find("pattern")) {
    if (!pattern->is_string()) {
      throw expectation_error(reader.at("pattern"), "a pattern as text", pattern->dump());
    }
    config.pattern = Pattern::parse(pattern->get<std::string>(), config.model.num_layers);
  }
  config.index_loss = reader.choice<IndexLoss>(
      "index_loss", IndexLoss::kMulti,
      {{"multi", IndexLoss::kMulti}, {"average", IndexLoss::kAverage}, {"own", IndexLoss::kOwn}});
  config.seed = static_cast<std::uint64_t>(reader.integer("seed", 1, 0));
  config.precision = reader.choice<Precision>(
      "precision", Precision::kFp32, {{"bf16", Precision::kBf16}, {"fp32", Precision::kFp32}});
  if (const auto* data = reader.find("data")) config.data = parse_data(*data, where + ": data");
  if (const auto* optimizer = reader.find("optimizer")) {
    config.optimizer = parse_optimizer(*optimizer, where + ": optimizer");
  }
  config.expert_bias_rate = reader.number("expert_bias_rate", config.expert_bias_rate, 0, 1);
  config.log_steps = reader.integer("log_steps", config.log_steps, 1);
  config.checkpoint_seconds =
      reader.number("checkpoint_seconds", config.checkpoint_seconds, 0, kInfinity);
  config.checkpoint_steps = reader.integer("checkpoint_steps", config.checkpoint_steps, 0);
  if (const auto* folder = reader.find("export")) {
    Reader exported(*folder, where + ": export");
    config.export_dtype = exported.choice<ExportDType>(
        "dtype", ExportDType::kBf16, {{"bf16", ExportDType::kBf16}, {"fp8", ExportDType::kFp8}});
    config.unused_indexers = exported.choice<UnusedIndexers>(
        "unused_indexers", UnusedIndexers::kKeep,
        {{"keep", UnusedIndexers::kKeep}, {"drop", UnusedIndexers::kDrop}});
    if (exported.flag("nearest_keys")) config.routed_keys = RoutedKeys::kNearestBeside;
    config.shard_bytes =
        exported.integer("shard_megabytes", 4096, 1, kMostShardMegabytes) * 1'000'000;
    exported.done();
  }
  const auto& stages = reader.need("stages", "a list of stages");
  if (!stages.is_array() || stages.empty()) {
    throw expectation_error(where + ": stages", "a list of stages", stages.dump());
  }
  for (std::size_t i = 0; i < stages.size(); ++i) {
    config.stages.push_back(
        parse_stage(stages[i], fmt::format("{}: stages[{}]", where, i), config.model));
  }
  reader.done();
  check_model(config, where);
  return config;
}

nlohmann::json read_json_file(const std::filesystem::path& file) {
  auto json = nlohmann::json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw expectation_error(file.string(), "JSON", "something else");
  return json;
}

RunConfig read_run_config(const std::filesystem::path& file) {
  return parse_run_config(read_json_file(file), file.string());
}

void scale_to_minutes(RunConfig& config, double minutes) {
  double seconds = 0;
  for (const auto& stage : config.stages) {
    if (stage.unit == BudgetUnit::kMinutes) seconds += stage.budget();
  }
  if (!(seconds > 0) || !(minutes > 0)) {
    throw expectation_error("--minutes", "a positive number and stages with budgets in minutes",
                            seconds > 0 ? fmt::format("{}", minutes) : "budgets in tokens alone");
  }
  for (auto& stage : config.stages) {
    if (stage.unit != BudgetUnit::kMinutes) continue;
    for (auto& phase : stage.phases) phase.budget *= 60 * minutes / seconds;
  }
  config.json["minutes"] = minutes;  // a resumed run must ask for the same
}

}  // namespace indexcache
