// The weights of a run: fp32 masters that the optimiser moves, and the copies that the forward pass
// computes with.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/model/load_weights.h"
#include "indexcache/train/parameters.h"
#include "indexcache/train/run_config.h"

namespace indexcache {

// The copies are bf16 or fp32, in FP8 training rounded as an FP8 folder would. Gradients are taken
// of the copies and applied to the masters (straight-through).
class TrainingWeights {
 public:
  // Drawn from the config's seed, an indexer in the pattern's Full layers; or, with `start`, its
  // tensors, whose config is config.model's. Throws InputError naming the layers if it lacks the
  // indexer of a Full layer. config must outlive it.
  TrainingWeights(const RunConfig& config, const Checkpoint* start, at::Device device);
  TrainingWeights(const TrainingWeights&) = delete;
  TrainingWeights& operator=(const TrainingWeights&) = delete;

  const std::vector<Parameter>& masters() const { return masters_; }
  const ModelWeights& compute() const { return compute_weights_; }

  // Makes the copies for a stage; those that it trains require gradients. Frozen weights that need
  // no other dtype are the masters themselves.
  void begin_stage(const Stage& stage);
  std::vector<Parameter> trained() const;  // masters of the stage's parameters
  // The gradients of trained(), fp32; taken away from the copies.
  std::vector<at::Tensor> take_gradients();
  // After a step of the optimiser: the copies follow.
  void refresh_trained();
  // bias += rate * sign(mean load - load), layer by layer; loads[layer] undefined where dense.
  void balance_experts(const std::vector<at::Tensor>& loads);

 private:
  at::ScalarType compute_dtype(ParameterStorage storage) const;
  bool trains(StageKind kind, const Parameter& parameter) const;
  bool rounds_to_fp8(std::size_t parameter) const;
  void refresh(std::size_t parameter);

  const RunConfig& config_;
  ModelWeights master_weights_, compute_weights_;
  std::vector<Parameter> masters_, copies_;
  std::vector<std::size_t> trained_;
  Fp8Training fp8_ = Fp8Training::kOff;
};

}  // namespace indexcache
