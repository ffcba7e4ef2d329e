// Trains a model from a run config, from random weights or from a checkpoint's: the stages in
// order, curves, checkpoints, resume.
//
// A run folder holds
//   checkpoint.safetensors   weights, optimiser and place of the last checkpoint (training_state.h)
//   curves.jsonl             one record every log_steps steps, up to the last checkpoint or beyond
//   model/                   the trained model, a Hugging Face folder, when the run is done
// Several processes train one model data-parallel: each runs its rows of every step's sequences, and
// gradients, weighted by tokens as in one process, are summed. The first process writes the folder,
// which all must see; sums are rounded in another order than in one process, nothing else differs.
//
// Killed at any moment and resumed, a run whose budgets are in tokens ends with the same bits on a
// CPU as if it had not been interrupted.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/data/text.h"
#include "indexcache/distributed/communicator.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "indexcache/train/run_config.h"

namespace indexcache {

enum class RunStart {
  kNew,     // the folder must hold no run
  kResume,  // from its last checkpoint, or from the beginning if there is none yet
};

struct TrainingRun {
  RunConfig config;
  std::filesystem::path folder;
  std::filesystem::path tokenizer_folder;  // tokenizer.json and what is copied beside it
  at::Device device = at::kCPU;
  RunStart start = RunStart::kNew;
  const Checkpoint* weights = nullptr;         // to start from; none: drawn from the seed
  std::optional<double> latent_norm_eps = {};  // as ModelOptions
  const Communicator* group = nullptr;         // of the processes that train together; none: alone
};

// After each step: how far the stage is, in tokens or seconds of its budget.
struct TrainingProgress {
  int stage = 0;
  double done = 0, budget = 0;
  std::string note;  // the last record in short
};

// Makes the run's folder and throws InputError if it holds a run that is not to be resumed, or if
// what the run leaves could not be written there. train() begins with it; who has work to do before
// calls it first.
void check_run_folder(const TrainingRun& run);

// Throws InputError for what cannot work before any work is done, and if the loss is no longer
// finite: then the last checkpoint is from before. Holds the folder: a second run in it is refused.
void train(const TrainingRun& run, const Tokenizer& tokenizer, const TokenStream& text,
           const std::function<void(const TrainingProgress&)>& observer);

}  // namespace indexcache
