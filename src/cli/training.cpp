#include "cli/training.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <memory>
#include <utility>

#include "cli/options.h"
#include "indexcache/base/progress.h"
#include "indexcache/data/text.h"

namespace indexcache::cli {
namespace {

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

}  // namespace

void TrainingArguments::add_to(CLI::App& app) {
  app.add_option("--data", data, "training text: .txt, .jsonl or .jsonl.xz")->required();
  app.add_option("--out", out, "run folder: checkpoint, curves and, at the end, model/")
      ->required();
  app.add_option("--device", device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--minutes", minutes, "scale the budgets that are in minutes to this sum");
  app.add_flag("--resume", resume, "go on from the last checkpoint in --out");
  app.add_option("--threads", threads, "CPU threads (default: all cores)")
      ->check(CLI::PositiveNumber);
}

TrainingRun TrainingArguments::make_run(RunConfig config,
                                        const std::filesystem::path& tokenizer_folder) const {
  if (threads > 0) at::set_num_threads(threads);
  if (minutes) scale_to_minutes(config, *minutes);
  return {.config = std::move(config),
          .folder = out,
          .tokenizer_folder = tokenizer_folder,
          .device = parse_device(device),
          .start = resume ? RunStart::kResume : RunStart::kNew};
}

void run_training(const TrainingArguments& arguments, const TrainingRun& run,
                  const Tokenizer& tokenizer) {
  check_run_folder(run);
  const auto text = tokenize(read_documents(arguments.data), tokenizer);
  fmt::print(stderr, "indexcache: {} tokens of text\n", text.tokens.size());
  StageProgress progress(run.config);
  train(run, tokenizer, text, [&](const TrainingProgress& now) { progress.update(now); });
}

}  // namespace indexcache::cli
