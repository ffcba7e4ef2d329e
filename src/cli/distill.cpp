// indexcache distill: trains a model's kept indexers for the layers that will read from them.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "cli/options.h"
#include "cli/training.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/calibrate/identity.h"
#include "indexcache/eval/estimate.h"
#include "indexcache/eval/evaluate.h"

namespace indexcache::cli {
namespace {

struct DistillArguments {
  TrainingArguments training;
  std::filesystem::path model, config, test;
  std::string pattern;
  std::optional<double> latent_norm_eps;
  bool indexer_only = false, drop_unused = false, as_nearest = false, force = false;
};

constexpr int kTestSequences = 16;

void check_dropping(const DistillArguments& arguments, const ModelConfig& model) {
  if (!arguments.drop_unused || arguments.force) return;
  if (model.architecture == Architecture::kDeepseekV32) {
    throw expectation_error(
        "--drop-unused", "glm_moe_dsa (or --force)",
        "deepseek_v32, which transformers runs with an indexer in every layer, random where there "
        "is none");
  }
}

// The run config of the file, completed by what the model and the options say.
RunConfig complete_config(const DistillArguments& arguments, const ModelConfig& model,
                          const Pattern& pattern) {
  auto json = read_json_file(arguments.config);
  const auto where = arguments.config.string();
  for (const char* key : {"model", "weights", "pattern"}) {
    if (json.is_object() && json.contains(key)) {
      throw expectation_error(where + ": " + key, "nothing: MODEL and --pattern say it", "one");
    }
  }
  if (json.is_object()) {
    json["model"] = model.json;
    json["model"].erase("quantization_config");
    json["weights"] = model_sha256(arguments.model);
    json["pattern"] = pattern.str();
    auto& exported = json["export"];
    if (!exported.contains("dtype")) exported["dtype"] = model.quantization ? "fp8" : "bf16";
    if (arguments.drop_unused) exported["unused_indexers"] = "drop";
    if (arguments.as_nearest) exported["nearest_keys"] = true;
    if (arguments.indexer_only && json.contains("stages")) {
      for (auto& stage : json["stages"]) {
        if (stage.is_object() && stage.value("kind", "") == "sparse") {
          stage["kind"] = "sparse-indexer";
        }
      }
    }
  }
  return parse_run_config(json, where);
}

// The result's loss on held-out text, under its pattern and, where that is routed and F/S keys were
// written, under the nearest one that they state.
void print_losses(const DistillArguments& arguments, const RunConfig& config,
                  const Tokenizer& tokenizer, at::Device device) {
  const auto checkpoint = Checkpoint::open(arguments.training.out / "model");
  const auto model =
      Model::load(checkpoint, {.device = device, .latent_norm_eps = arguments.latent_norm_eps});
  SequenceOptions options;
  options.num_sequences = kTestSequences;
  options.context = config.stages.back().phases.back().context;
  const auto sequences = make_sequences(read_documents(arguments.test), tokenizer, options);
  std::vector<Pattern> patterns = {config.pattern};
  if (arguments.as_nearest && !config.pattern.is_nearest()) {
    patterns.push_back(config.pattern.as_nearest());
  }
  for (const auto& pattern : patterns) {
    std::vector<double> losses;
    for (const auto& sequence : sequences) {
      const auto scores = score_tokens(model, pattern, sequence.tokens);
      double sum = 0;
      for (const float score : scores) sum += score;
      losses.push_back(sum / static_cast<double>(scores.size()));
    }
    const auto mean = ratio(losses, std::vector<double>(losses.size(), 1.0));
    fmt::print("loss on {}, {} sequences of {}: {:.4f} +- {:.4f} under {}\n",
               arguments.test.string(), losses.size(), options.context, mean.value,
               mean.standard_error, pattern.str());
  }
}

void distill(const DistillArguments& arguments) {
  if (arguments.as_nearest && arguments.test.empty()) {
    throw expectation_error("--as-nearest",
                            "--test FILE: the nearest pattern's own loss is shown on it", "none");
  }
  const TrainingProcess process(arguments.training);
  const auto checkpoint = Checkpoint::open(arguments.model);
  if (process.speaks()) print_notices(checkpoint);
  const auto& model = checkpoint.config();
  check_dropping(arguments, model);
  const auto pattern = resolve_pattern(arguments.pattern, model);
  auto run = make_run(arguments.training, complete_config(arguments, model, pattern),
                      arguments.model, process);
  run.weights = &checkpoint;
  run.latent_norm_eps = arguments.latent_norm_eps;
  if (process.speaks() && !pattern.is_nearest()) {
    fmt::print(stderr,
               "indexcache: notice: {} is routed: config.json will say it in indexcache_sources, "
               "which no serving engine follows{}\n",
               pattern.str(),
               arguments.as_nearest ? "; its F/S keys will state the nearest pattern instead" : "");
  }
  const auto tokenizer = read_tokenizer(arguments.model, model);
  run_training(arguments.training, run, tokenizer);
  if (!process.speaks()) return;
  if (!arguments.test.empty()) print_losses(arguments, run.config, tokenizer, run.device);
  fmt::print("{}\n", (run.folder / "model").string());
}

}  // namespace

void add_distill(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "distill", "Train the kept indexers of a pattern for the layers that read from them");
  auto arguments = std::make_shared<DistillArguments>();
  verb->add_option("model", arguments->model,
                   "Hugging Face folder: config.json, *.safetensors, tokenizer.json")
      ->required();
  verb->add_option("--pattern", arguments->pattern,
                   "the pattern to train for: any form that eval takes")
      ->required();
  verb->add_option("--config", arguments->config,
                   "run config: stages, rates, data (docs/training.md, models/distill.json)")
      ->required();
  arguments->training.add_to(*verb);
  verb->add_option("--test", arguments->test, "held-out text to show the result's loss on");
  verb->add_option("--latent-norm-eps", arguments->latent_norm_eps,
                   "epsilon of q_a_layernorm and kv_a_layernorm (default: rms_norm_eps)");
  verb->add_flag("--indexer-only", arguments->indexer_only,
                 "freeze the rest of the model in sparse stages too");
  verb->add_flag("--drop-unused", arguments->drop_unused,
                 "leave the indexers of Shared layers out of the result");
  verb->add_flag("--as-nearest", arguments->as_nearest,
                 "for a routed pattern, also write the F/S keys of its nearest one, for engines "
                 "that know only these, and show its own loss");
  verb->add_flag("--force", arguments->force, "drop them from a deepseek_v32 folder too");
  verb->callback([arguments] { distill(*arguments); });
}

}  // namespace indexcache::cli
