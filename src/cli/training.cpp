#include "cli/training.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <utility>

#include "cli/group.h"
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

namespace {

// How long a process waits for the others: a checkpoint of a large model is written meanwhile.
constexpr auto kGroupTimeout = std::chrono::minutes(30);

at::Device device_of(const TrainingArguments& arguments, const std::optional<GroupPlace>& place) {
  const auto device = parse_device(arguments.device);
  return device.is_cuda() && place
             ? at::Device(at::kCUDA, static_cast<at::DeviceIndex>(place->local_rank))
             : device;
}

}  // namespace

TrainingProcess::TrainingProcess(const TrainingArguments& arguments) : device(at::kCPU) {
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
  const auto place = group_from_environment();
  device = device_of(arguments, place);
  if (place) group = Communicator::join(*place, device, kGroupTimeout);
}

TrainingRun make_run(const TrainingArguments& arguments, RunConfig config,
                     const std::filesystem::path& tokenizer_folder,
                     const TrainingProcess& process) {
  if (arguments.minutes) scale_to_minutes(config, *arguments.minutes);
  return {.config = std::move(config),
          .folder = arguments.out,
          .tokenizer_folder = tokenizer_folder,
          .device = process.device,
          .start = arguments.resume ? RunStart::kResume : RunStart::kNew,
          .group = &process.group};
}

void run_training(const TrainingArguments& arguments, const TrainingRun& run,
                  const Tokenizer& tokenizer) {
  check_run_folder(run);
  const auto text = tokenize(read_documents(arguments.data), tokenizer);
  if (run.group->rank() != 0) return train(run, tokenizer, text, [](const TrainingProgress&) {});
  fmt::print(stderr, "indexcache: {} tokens of text\n", text.tokens.size());
  StageProgress progress(run.config);
  train(run, tokenizer, text, [&](const TrainingProgress& now) { progress.update(now); });
}

}  // namespace indexcache::cli
