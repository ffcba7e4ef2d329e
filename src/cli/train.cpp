#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "cli/options.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/base/progress.h"
#include "indexcache/data/text.h"
#include "indexcache/train/trainer.h"

namespace indexcache::cli {
namespace {

struct TrainArguments {
  std::filesystem::path config, data, tokenizer, out;
  std::string device = "cpu";
  std::optional<double> minutes;
  bool resume = false;
  int threads = 0;
};

// One progress line a stage, in the unit of its budget.
class StageProgress {
 public:
  explicit StageProgress(const RunConfig& config) : config_(config) {}

  void update(const TrainingProgress& progress) {
    const auto done = static_cast<std::int64_t>(progress.done);
    if (!bar_ || stage_ != progress.stage) {
      bar_.reset();
      stage_ = progress.stage;
      const auto& stage = config_.stages[static_cast<std::size_t>(stage_)];
      bar_ = std::make_unique<Progress>(fmt::format("stage {} of {}, {}", stage_ + 1,
                                                    config_.stages.size(), stage_name(stage.kind)),
                                        stage.unit == BudgetUnit::kTokens ? "tokens" : "seconds",
                                        static_cast<std::int64_t>(progress.budget), done);
    }
    bar_->update(done, progress.note);
  }

 private:
  const RunConfig& config_;
  std::unique_ptr<Progress> bar_;
  int stage_ = -1;
};

void run_train(const TrainArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
  if (arguments.device == "cuda" && !at::hasCUDA()) {
    throw expectation_error("--device", "a machine and a build with CUDA", "none");
  }
  TrainingRun run{.config = read_run_config(arguments.config),
                  .folder = arguments.out,
                  .tokenizer_folder = arguments.tokenizer,
                  .device = at::Device(arguments.device == "cuda" ? at::kCUDA : at::kCPU),
                  .start = arguments.resume ? RunStart::kResume : RunStart::kNew};
  if (arguments.minutes) scale_to_minutes(run.config, *arguments.minutes);
  const auto tokenizer = read_tokenizer(arguments.tokenizer, run.config.model);
  const auto text = tokenize(read_documents(arguments.data), tokenizer);
  fmt::print(stderr, "indexcache: {} tokens of text\n", text.tokens.size());
  StageProgress progress(run.config);
  train(run, tokenizer, text, [&](const TrainingProgress& now) { progress.update(now); });
  fmt::print("{}\n", (arguments.out / "model").string());
}

}  // namespace

void add_train(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "train", "train a small DSA model: dense, indexer warm-up, sparse; resumable");
  auto arguments = std::make_shared<TrainArguments>();
  verb->add_option("config", arguments->config,
                   "run config: the model's config and the stages (models/*.json)")
      ->required();
  verb->add_option("--data", arguments->data, "training text: .txt, .jsonl or .jsonl.xz")
      ->required();
  verb->add_option("--tokenizer", arguments->tokenizer, "folder with tokenizer.json")->required();
  verb->add_option("--out", arguments->out,
                   "run folder: checkpoint, curves and, at the end, model/")
      ->required();
  verb->add_option("--device", arguments->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--minutes", arguments->minutes,
                   "scale the budgets that are in minutes to this sum");
  verb->add_flag("--resume", arguments->resume, "go on from the last checkpoint in --out");
  verb->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(CLI::PositiveNumber);
  verb->callback([arguments] { run_train(*arguments); });
}

}  // namespace indexcache::cli
