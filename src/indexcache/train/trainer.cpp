#include "indexcache/train/trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>

#include <array>
#include <chrono>
#include <deque>
#include <future>
#include <memory>
#include <optional>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/staged_folder.h"
#include "indexcache/model/model.h"
#include "indexcache/train/batches.h"
#include "indexcache/train/curves.h"
#include "indexcache/train/export.h"
#include "indexcache/train/optimizer.h"
#include "indexcache/train/parameters.h"
#include "indexcache/train/training_state.h"
#include "indexcache/train/training_weights.h"

namespace indexcache {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kBatchesAhead = 4;  // prepared by other threads while a step runs

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string fingerprint(const TokenStream& text) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over the tokens
  for (const auto token : text.tokens) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x100000001b3;
  }
  return fmt::format("{} tokens, {:016x}", text.tokens.size(), hash);
}

// Batches of one phase in order, made ahead of their use.
class BatchQueue {
 public:
  BatchQueue(const BatchSource& source, BatchPlace next) : source_(source), next_(next) {}

  HostBatch take() {
    while (pending_.size() < kBatchesAhead) {
      pending_.push_back(
          std::async(std::launch::async, [this, place = next_] { return source_.make(place); }));
      ++next_.step;
    }
    auto batch = pending_.front().get();
    pending_.pop_front();
    return batch;
  }

 private:
  const BatchSource& source_;
  BatchPlace next_;
  std::deque<std::future<HostBatch>> pending_;
};

TrainingBatch move_batch(HostBatch batch, const Phase& phase, const BatchRows& rows,
                         at::Device device) {
  const std::array<std::int64_t, 2> shape = {phase.sequences, phase.context};
  const auto part = [&](auto& values, at::ScalarType dtype) {
    const auto whole = at::from_blob(values.data(), shape, at::TensorOptions().dtype(dtype));
    const auto mine = whole.narrow(0, rows.first, rows.count);
    return device.is_cuda() ? mine.pin_memory().to(device, /*non_blocking=*/true) : mine.clone();
  };
  return {.inputs = part(batch.inputs, at::kLong),
          .targets = part(batch.targets, at::kLong),
          .weights = part(batch.weights, at::kFloat),
          .answers = part(batch.answers, at::kBool),
          .share = static_cast<double>(rows.count) / static_cast<double>(phase.sequences)};
}

std::filesystem::path checkpoint_file(const TrainingRun& run) {
  return run.folder / "checkpoint.safetensors";
}

const Communicator& group_of(const TrainingRun& run) {
  static const Communicator alone;
  return run.group != nullptr ? *run.group : alone;
}

void check_rows(const RunConfig& config, int num_processes) {
  for (std::size_t i = 0; i < config.stages.size(); ++i) {
    for (std::size_t j = 0; j < config.stages[i].phases.size(); ++j) {
      const auto sequences = config.stages[i].phases[j].sequences;
      if (sequences < num_processes) {
        throw expectation_error(fmt::format("stages[{}]: phases[{}]: sequences", i, j),
                                fmt::format("at least one a process, {}", num_processes),
                                fmt::format("{}", sequences));
      }
    }
  }
}

class Trainer {
 public:
  Trainer(const TrainingRun& run, const Tokenizer& tokenizer, const TokenStream& text,
          const std::function<void(const TrainingProgress&)>& observer)
      : run_(run),
        config_(run.config),
        group_(group_of(run)),
        observer_(observer),
        text_(fingerprint(text)),
        batches_(config_, tokenizer, text),
        weights_(config_, run.weights, run.device),
        shape_(block_shape(config_.model, run.latent_norm_eps)),
        rope_(rope_frequencies(config_.model)) {
    rope_.inv_freq = rope_.inv_freq.to(run.device);
    if (std::filesystem::exists(checkpoint_file(run))) {
      restore(load_training_state(checkpoint_file(run)));
    }
    if (first()) curves_.emplace(run.folder / "curves.jsonl", position_.step);
  }

  void run() {
    logged_ = ticked_ = Clock::now();
    const auto num_stages = static_cast<int>(config_.stages.size());
    while (position_.stage < num_stages) {
      const auto& stage = current_stage();
      begin_stage(stage);
      for (; position_.phase < static_cast<int>(stage.phases.size()); next_phase()) {
        run_phase(stage, stage.phases[static_cast<std::size_t>(position_.phase)]);
      }
      if (sums_.steps() > 0) record();
      ++position_.stage;
      position_.phase = 0;
      optimizer_.reset();  // the next stage's moments start anew
      save();
    }
    if (first()) {
      export_model(run_.folder / "model", config_, weights_.masters(), run_.tokenizer_folder);
    }
    group_.barrier();  // the model is there when any process says so
  }

 private:
  bool first() const { return group_.rank() == 0; }
  const Stage& current_stage() const {
    return config_.stages[static_cast<std::size_t>(position_.stage)];
  }

  void begin_stage(const Stage& stage) {
    weights_.begin_stage(stage);
    optimizer_.emplace(config_.optimizer, weights_.trained());
    if (restored_.empty()) return;
    // The moments of the interrupted stage; there are none if it had not begun.
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : named_moments()) take_restored(name, tensor);
    restored_.clear();
  }

  void next_phase() {
    ++position_.phase;
    position_.phase_step = 0;
    position_.phase_used = 0;
  }

  void run_phase(const Stage& stage, const Phase& phase) {
    BatchQueue queue(batches_, {position_.stage, position_.phase, position_.phase_step});
    const auto rows = rows_of(phase.sequences, group_.rank(), group_.size());
    while (position_.phase_used < phase.budget) {
      step(stage, move_batch(queue.take(), phase, rows, run_.device));
      const auto tokens = phase.sequences * phase.context;
      // What was saved since the last step counts too. One clock for all processes: they must agree
      // on when a budget is used up and a checkpoint is due.
      const auto seconds = group_.from_first(seconds_since(ticked_));
      ticked_ = Clock::now();
      ++position_.step;
      ++position_.phase_step;
      position_.tokens += tokens;
      position_.seconds += seconds;
      position_.phase_used +=
          stage.unit == BudgetUnit::kTokens ? static_cast<double>(tokens) : seconds;
      if (position_.step % config_.log_steps == 0) record();
      if (checkpoint_due()) save();
      observer_({.stage = position_.stage,
                 .done = std::min(stage_used(stage), stage.budget()),
                 .budget = stage.budget(),
                 .note = note_});
    }
  }

  double stage_used(const Stage& stage) const {
    double used = position_.phase_used;
    for (int i = 0; i < position_.phase; ++i)
      used += stage.phases[static_cast<std::size_t>(i)].budget;
    return used;
  }

  void step(const Stage& stage, const TrainingBatch& batch) {
    const auto forward = training_forward(weights_.compute(), shape_, rope_, batch, stage.kind,
                                          config_.pattern, config_.index_loss);
    forward.loss.backward();
    factor_ = rate_factor(stage.schedule, stage_used(stage) / stage.budget());
    auto gradients = weights_.take_gradients();
    auto parts = gradients;
    for (const auto& load : forward.expert_loads) {
      if (load.defined()) parts.push_back(load);
    }
    group_.sum(parts);
    const auto norm = optimizer_->step(
        std::move(gradients),
        {.model = factor_ * stage.schedule.peak, .indexer = factor_ * stage.indexer_peak});
    if (trains_model(stage.kind)) weights_.balance_experts(forward.expert_loads);
    weights_.refresh_trained();
    sums_.add(forward, batch, norm);
  }

  void record() {
    const auto& stage = current_stage();
    sums_.gather(group_);
    bool finite = true;
    const auto steps = sums_.steps();
    auto record = sums_.take(finite);
    if (!finite) {
      throw input_error(
          "training diverged: loss or gradient is not finite within the {} steps up to step {} "
          "({} stage); the last good checkpoint is {}: lower the learning rate",
          steps, position_.step, stage_name(stage.kind),
          saved_step_ > 0 ? fmt::format("that of step {}", saved_step_) : "none yet");
    }
    record["stage"] = stage_name(stage.kind);
    record["step"] = position_.step;
    record["tokens"] = position_.tokens;
    record["learning_rate"] = factor_ * stage.schedule.peak;
    record["indexer_learning_rate"] = factor_ * stage.indexer_peak;
    record["seconds"] = position_.seconds;
    record["tokens_per_second"] =
        static_cast<double>(position_.tokens - logged_tokens_) / seconds_since(logged_);
    logged_ = Clock::now();
    logged_tokens_ = position_.tokens;
    note_ = record.contains("loss") ? fmt::format("loss {:.3f}", record["loss"].get<double>()) : "";
    if (record.contains("kl")) {
      double sum = 0;
      for (const auto& kl : record["kl"]) sum += kl.get<double>();
      note_ += fmt::format("{}kl {:.3f}", note_.empty() ? "" : ", ",
                           sum / static_cast<double>(record["kl"].size()));
    }
    if (curves_) curves_->append(record);
  }

  bool checkpoint_due() const {
    return (config_.checkpoint_steps > 0 && position_.step % config_.checkpoint_steps == 0) ||
           (config_.checkpoint_seconds > 0 &&
            position_.seconds - saved_seconds_ >= config_.checkpoint_seconds);
  }

  std::vector<std::pair<std::string, at::Tensor>> named_moments() {
    std::vector<std::pair<std::string, at::Tensor>> moments;
    for (std::size_t i = 0; i < optimizer_->parameters().size(); ++i) {
      const auto& name = optimizer_->parameters()[i].name;
      moments.emplace_back("first_moment." + name, optimizer_->first_moments()[i]);
      moments.emplace_back("second_moment." + name, optimizer_->second_moments()[i]);
    }
    moments.emplace_back("optimizer_steps", optimizer_->steps());
    return moments;
  }

  void save() {
    // What is saved must be good: the sums say so.
    if (sums_.steps() > 0) record();
    if (first()) write_state();
    saved_step_ = position_.step;
    saved_seconds_ = position_.seconds;
  }

  void write_state() {
    TrainingState state{
        .config = config_.json, .text = text_, .position = position_, .tensors = {}};
    for (const auto& master : weights_.masters()) {
      state.tensors.emplace("weight." + master.name, *master.tensor);
    }
    if (optimizer_) {
      for (const auto& [name, tensor] : named_moments()) state.tensors.emplace(name, tensor);
    }
    save_training_state(checkpoint_file(run_), state);
  }

  void restore(TrainingState state) {
    const auto file = checkpoint_file(run_).string();
    if (state.config != config_.json) {
      throw expectation_error(file, "a run of the same config (as read, with --minutes)",
                              "another");
    }
    if (state.text != text_) throw expectation_error(file, "text of " + state.text, text_);
    check_position(state.position, file);
    position_ = state.position;
    saved_step_ = position_.step;
    saved_seconds_ = position_.seconds;
    logged_tokens_ = position_.tokens;
    restored_ = std::move(state.tensors);
    const at::NoGradGuard no_grad;
    for (const auto& master : weights_.masters()) {
      take_restored("weight." + master.name, *master.tensor);
    }
  }

  // A file that was tampered with must not become an index.
  void check_position(const RunPosition& at, const std::string& file) const {
    const auto within = [](auto value, auto end) { return value >= 0 && value < end; };
    const auto num_stages = static_cast<int>(config_.stages.size());
    const bool ended = at.stage == num_stages && at.phase == 0;
    const auto num_phases = [&] {
      return static_cast<int>(config_.stages[static_cast<std::size_t>(at.stage)].phases.size());
    };
    if (!(ended || (within(at.stage, num_stages) && within(at.phase, num_phases()))) ||
        at.phase_step < 0 || at.step < 0 || at.tokens < 0 || !(at.phase_used >= 0) ||
        !(at.seconds >= 0)) {
      throw expectation_error(
          file, "a place in the run's stages",
          fmt::format("stage {}, phase {}, step {}", at.stage, at.phase, at.step));
    }
  }

  void take_restored(const std::string& name, at::Tensor tensor) {
    const auto found = restored_.find(name);
    if (found == restored_.end()) {
      if (name.starts_with("weight.") || position_.phase_step > 0 || position_.phase > 0) {
        throw expectation_error(checkpoint_file(run_).string(), "tensor " + name, "nothing");
      }
      return;
    }
    if (found->second.sizes() != tensor.sizes()) {
      throw expectation_error(checkpoint_file(run_).string() + ": " + name,
                              fmt::format("shape [{}]", fmt::join(tensor.sizes(), ", ")),
                              fmt::format("[{}]", fmt::join(found->second.sizes(), ", ")));
    }
    tensor.copy_(found->second);
  }

  const TrainingRun& run_;
  const RunConfig& config_;
  const Communicator& group_;
  const std::function<void(const TrainingProgress&)>& observer_;
  const std::string text_;
  const BatchSource batches_;
  TrainingWeights weights_;
  const BlockShape shape_;
  RopeFrequencies rope_;
  RunPosition position_;
  std::optional<Optimizer> optimizer_;
  std::optional<CurveFile> curves_;
  std::map<std::string, at::Tensor> restored_;
  StepSums sums_;
  double factor_ = 0;
  std::string note_;
  std::int64_t saved_step_ = 0, logged_tokens_ = 0;
  double saved_seconds_ = 0;
  Clock::time_point logged_, ticked_;
};

}  // namespace

void check_run_folder(const TrainingRun& run) {
  if (std::filesystem::exists(checkpoint_file(run)) && run.start == RunStart::kNew) {
    throw expectation_error(run.folder.string(), "no run in it (or --resume)",
                            checkpoint_file(run).string());
  }
  if (group_of(run).rank() != 0) return;
  make_folder(run.folder);
  check_writable(checkpoint_file(run));
  check_writable(run.folder / "curves.jsonl");
  StagedFolder(run.folder / "model");  // throws if no model could be put there
}

void train(const TrainingRun& run, const Tokenizer& tokenizer, const TokenStream& text,
           const std::function<void(const TrainingProgress&)>& observer) {
  check_rows(run.config, group_of(run).size());
  check_run_folder(run);
  std::optional<FolderLock> lock;
  if (group_of(run).rank() == 0) lock.emplace(run.folder);
  Trainer(run, tokenizer, text, observer).run();
}

}  // namespace indexcache
