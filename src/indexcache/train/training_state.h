// What a run can be taken up again from, in one safetensors file that is replaced as a whole.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace indexcache {

// Where the run stands. Data and initial weights are functions of the seed and these numbers, so
// there is no generator to keep.
struct RunPosition {
  int stage = 0, phase = 0;
  std::int64_t phase_step = 0;
  double phase_used = 0;  // of the phase's budget: tokens or seconds
  std::int64_t step = 0;  // of the run
  std::int64_t tokens = 0;
  double seconds = 0;
};

struct TrainingState {
  nlohmann::json config;  // the run config; a resumed run must have the same
  std::string text;       // fingerprint of the tokenised text, likewise
  RunPosition position;
  std::map<std::string, at::Tensor> tensors;  // fp32
};

void save_training_state(const std::filesystem::path& file, const TrainingState& state);
// Tensors on the CPU. Throws InputError if the file is not one of these.
TrainingState load_training_state(const std::filesystem::path& file);

}  // namespace indexcache
