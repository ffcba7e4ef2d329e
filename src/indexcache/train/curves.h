// The curves of a training run: JSON lines, one record every few steps.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "indexcache/distributed/communicator.h"
#include "indexcache/train/forward.h"
#include "indexcache/train/training_state.h"

namespace indexcache {

// Sums what the steps since the last record gave, on the device: read only when a record is made.
class StepSums {
 public:
  // Loads and the norm are the whole step's, the rest this process's part.
  void add(const TrainingForward& forward, const TrainingBatch& batch, const at::Tensor& norm);
  // Makes the sums those of all processes.
  void gather(const Communicator& group);
  std::int64_t steps() const { return steps_; }

  // {loss: of all tokens but answers, answer_loss, kl: [Full layer], grad_norm, expert_load: [layer:
  // [expert's share of its layer's tokens]]}; then starts anew. `finite` says whether every loss
  // and norm was.
  nlohmann::json take(bool& finite);

 private:
  std::int64_t steps_ = 0;
  at::Tensor loss_, answer_loss_, answers_, tokens_, objective_, norm_, kl_, load_;
};

// Appends records to a file; what was written beyond a checkpoint is cut off when resuming.
class CurveFile {
 public:
  // Keeps the records up to `step`.
  CurveFile(std::filesystem::path path, std::int64_t step);
  void append(const nlohmann::json& record);

 private:
  std::filesystem::path path_;
};

}  // namespace indexcache
