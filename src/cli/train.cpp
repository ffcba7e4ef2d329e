// indexcache train: a model from random weights, by a run config.
#include <fmt/format.h>

#include <memory>

#include "cli/options.h"
#include "cli/training.h"
#include "cli/verbs.h"

namespace indexcache::cli {
namespace {

struct TrainArguments {
  TrainingArguments training;
  std::filesystem::path config, tokenizer;
};

void train_model(const TrainArguments& arguments) {
  const TrainingProcess process(arguments.training);
  const auto run =
      make_run(arguments.training, read_run_config(arguments.config), arguments.tokenizer, process);
  run_training(arguments.training, run, read_tokenizer(arguments.tokenizer, run.config.model));
  if (process.speaks()) fmt::print("{}\n", (run.folder / "model").string());
}

}  // namespace

void add_train(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "train", "Train a small DSA model: dense, indexer warm-up, sparse; resumable");
  auto arguments = std::make_shared<TrainArguments>();
  verb->add_option("config", arguments->config,
                   "run config: the model's config and the stages (models/*.json)")
      ->required();
  verb->add_option("--tokenizer", arguments->tokenizer, "folder with tokenizer.json")->required();
  arguments->training.add_to(*verb);
  verb->callback([arguments] { train_model(*arguments); });
}

}  // namespace indexcache::cli
