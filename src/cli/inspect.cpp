// indexcache inspect MODEL [--pattern P]: what a model folder holds, how every engine reads its schedule,
// what it costs in memory; with a pattern, all of it under that one, and how to serve it. Reads headers
// only.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "cli/verbs.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/checkpoint/summary.h"

namespace indexcache::cli {
namespace {

struct InspectArguments {
  std::filesystem::path folder;
  std::string pattern = "model";
  std::int64_t context = 0;  // 0: the model's longest
  bool json = false;
};

std::string in_bytes(std::int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < std::int64_t{1} << 20) return fmt::format("{:.1f} KiB", value / (1 << 10));
  if (bytes < std::int64_t{1} << 30) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.2f} GiB", value / (1 << 30));
}

std::string in_words(std::int64_t count) {
  const auto value = static_cast<double>(count);
  if (count >= 1'000'000'000) return fmt::format("{:.2f} B", value / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.2f} M", value / 1e6);
  return fmt::format("{}", count);
}

std::string dtypes_of(const PartSummary& part) {
  std::string text;
  for (const auto& [dtype, parameters] : part.parameters_by_dtype) {
    text += (text.empty() ? "" : ", ") + dtype;
  }
  return text;
}

int count_sparse(const ModelConfig& config) {
  return static_cast<int>(
      std::count(config.mlp_kinds.begin(), config.mlp_kinds.end(), MlpKind::kSparse));
}

void print_architecture(const ModelConfig& c) {
  fmt::print("{}: {} layers, hidden {}, vocabulary {}, context {}\n", model_type(c.architecture),
             c.num_layers, c.hidden_size, c.vocab_size, c.max_position_embeddings);
  fmt::print(
      "  attention  {} heads of {} + {} (RoPE), values {}, latents {} (queries), {} (keys)\n",
      c.num_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.q_lora_rank,
      c.kv_lora_rank);
  fmt::print("  indexer    {} heads of {}, top {}, {} RoPE\n", c.index_num_heads, c.index_head_dim,
             c.index_topk, c.indexer_rope_interleave ? "interleaved" : "half-split");
  fmt::print("  experts    {} of {} and {} shared in {} layers, {} layers dense\n",
             c.num_experts_per_token, c.num_experts, c.num_shared_experts, count_sparse(c),
             c.num_layers - count_sparse(c));
  fmt::print("  RoPE       theta {}{}\n", c.rope.theta,
             c.rope.yarn ? fmt::format(", YaRN x{} from {}", c.rope.yarn->factor,
                                       c.rope.yarn->original_max_position_embeddings)
                         : "");
}

void print_weights(const ModelSummary& summary) {
  fmt::print("\nWeights\n");
  for (const auto& part : summary.parts) {
    fmt::print("  {:<34}{:>8} tensors {:>12} {:>12}  {}\n", part_name(part.part), part.tensors,
               in_words(part.parameters), in_bytes(part.bytes), dtypes_of(part));
  }
  fmt::print("  {:<34}{:>29} {:>12}\n", "stored", in_words(summary.stored_parameters),
             in_bytes(summary.stored_bytes));
  fmt::print("  {:<34}{:>29} {:>12}\n", "of these the model runs",
             in_words(summary.model_parameters), in_bytes(summary.model_bytes));
  fmt::print("  {:<34}{:>29}\n", "of these a token uses", in_words(summary.active_parameters));
}

void print_schedule(const ModelConfig& config) {
  fmt::print("\nSchedule: {} of {} layers Full\n  {:<18} {}\n", config.schedule.num_full(),
             config.num_layers, "indexcache", config.schedule.str());
  for (const auto& reading : read_schedule_as_engines_do(config)) {
    std::string text = "none";
    if (reading.pattern) {
      text = *reading.pattern == config.schedule ? "the same" : reading.pattern->str();
    }
    fmt::print("  {:<18} {}{}{}\n", reading.reader, text,
               reading.key.empty() ? "" : fmt::format(" ({})", reading.key),
               reading.remark.empty() ? "" : fmt::format(": {}", reading.remark));
  }
}

// The keys of config.json that state the schedule.
nlohmann::ordered_json schedule_keys(const ModelConfig& config) {
  auto keys = nlohmann::ordered_json::object();
  for (const char* key : {"index_topk_pattern", "indexer_types", "indexcache_sources"}) {
    if (config.json.contains(key)) keys[key] = config.json[key];
  }
  return keys;
}

void print_serving(const ModelConfig& config) {
  fmt::print("\nTo serve it\n  {:<18} {}\n", "config.json", schedule_keys(config).dump());
  for (const auto& flag : schedule_flags(config)) {
    fmt::print("  {:<18} {} '{}'\n", flag.reader, flag.flag, flag.value.dump());
  }
  if (config.schedule.is_nearest()) return;
  fmt::print(
      "  No engine follows a routed pattern. With the same Full layers they run {}, whose loss is\n"
      "  another one: measure it, or search with a strategy of nearest sources.\n",
      config.schedule.as_nearest().str());
}

void print_memory(const ModelConfig& config, const ModelSummary& summary, std::int64_t context) {
  const auto token = cached_bytes_per_token(config, config.schedule);
  const auto full = cached_bytes_per_token(config, Pattern::full(config.num_layers));
  fmt::print("\nMemory of one sequence of {} tokens (bf16 caches)\n", context);
  const auto row = [&](const char* name, std::int64_t bytes) {
    fmt::print("  {:<34}{:>12} a token {:>12}\n", name, fmt::format("{} B", bytes),
               in_bytes(bytes * context));
  };
  row("latents", token.latents);
  row("index keys of Full layers", token.index_keys);
  row("caches", token.total());
  row("caches if all layers were Full", full.total());
  fmt::print("  {:<34}{:>33}\n", "weights in bf16", in_bytes(2 * summary.model_parameters));
}

nlohmann::json as_json(const Checkpoint& checkpoint, const ModelConfig& config,
                       const ModelSummary& summary, std::int64_t context) {
  nlohmann::json parts = nlohmann::json::array();
  for (const auto& part : summary.parts) {
    parts.push_back({{"part", part_name(part.part)},
                     {"tensors", part.tensors},
                     {"parameters", part.parameters},
                     {"bytes", part.bytes},
                     {"parameters_by_dtype", part.parameters_by_dtype}});
  }
  nlohmann::json readings = nlohmann::json::array();
  for (const auto& reading : read_schedule_as_engines_do(config)) {
    readings.push_back({{"reader", reading.reader},
                        {"key", reading.key},
                        {"pattern", nullptr},
                        {"same", reading.pattern == config.schedule},
                        {"remark", reading.remark}});
    if (reading.pattern) readings.back()["pattern"] = reading.pattern->str();
  }
  auto flags = nlohmann::json::object();
  for (const auto& flag : schedule_flags(config)) {
    flags[flag.reader] = {{"flag", flag.flag}, {"value", flag.value}};
  }
  const auto token = cached_bytes_per_token(config, config.schedule);
  const auto full = cached_bytes_per_token(config, Pattern::full(config.num_layers));
  return {{"model", checkpoint.folder().string()},
          {"model_type", model_type(config.architecture)},
          {"num_layers", config.num_layers},
          {"parameters",
           {{"stored", summary.stored_parameters},
            {"model", summary.model_parameters},
            {"active", summary.active_parameters}}},
          {"bytes", {{"stored", summary.stored_bytes}, {"model", summary.model_bytes}}},
          {"parts", parts},
          {"schedule",
           {{"pattern", config.schedule.str()},
            {"sources", config.schedule.sources()},
            {"num_full", config.schedule.num_full()},
            {"config", schedule_keys(config)},
            {"flags", flags},
            {"readings", readings}}},
          {"memory",
           {{"context", context},
            {"latent_bytes_per_token", token.latents},
            {"index_key_bytes_per_token", token.index_keys},
            {"cache_bytes", token.total() * context},
            {"all_full_cache_bytes", full.total() * context},
            {"bf16_weight_bytes", 2 * summary.model_parameters}}},
          {"notices", checkpoint.notices()}};
}

void run(const InspectArguments& arguments) {
  const auto checkpoint = Checkpoint::open(arguments.folder);
  auto config = checkpoint.config();
  const bool other = arguments.pattern != "model";
  if (other) {
    const auto pattern = resolve_pattern(arguments.pattern, config);
    require_indexers(pattern, [&](int layer) { return checkpoint.has_indexer(layer); });
    set_schedule(config, pattern);
  }
  const auto summary = summarize(checkpoint, config);
  const auto context = arguments.context > 0 ? arguments.context : config.max_position_embeddings;
  if (arguments.json) {
    fmt::print("{}\n", as_json(checkpoint, config, summary, context).dump(2));
    return;
  }
  print_architecture(config);
  print_weights(summary);
  print_schedule(config);
  if (other) print_serving(config);
  print_memory(config, summary, context);
  if (!checkpoint.notices().empty()) fmt::print("\nNotices\n");
  for (const auto& notice : checkpoint.notices()) fmt::print("  {}\n", notice);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "inspect", "Show what a model holds, how engines read its schedule, what it costs in memory");
  auto arguments = std::make_shared<InspectArguments>();
  verb->add_option("model", arguments->folder, "Hugging Face folder: config.json, *.safetensors")
      ->required();
  verb->add_option(
      "--pattern", arguments->pattern,
      "show the model under this pattern, and how to serve it (default: its own schedule)");
  verb->add_option("--context", arguments->context, "tokens (default: the model's longest context)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31));
  verb->add_flag("--json", arguments->json, "for machines");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace indexcache::cli
