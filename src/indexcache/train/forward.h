// The forward pass of one training step, differentiable.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "indexcache/layers/block.h"
#include "indexcache/layers/rope.h"
#include "indexcache/model/load_weights.h"

namespace indexcache {

// What a stage trains, and under which attention (spec section 5).
enum class StageKind {
  kLanguageModel,  // "lm": the model but its indexers; dense causal attention
  kIndexerWarmup,  // "indexer": the indexers alone, towards the dense attention of the frozen model
  // "sparse": attention over each layer's own index set; the model learns from the language model's
  // loss, the indexers from the KL on the set
  kSparse,
};

struct TrainingBatch {
  at::Tensor inputs, targets;  // [B, T] int64
  at::Tensor weights;          // [B, T] fp32: each token's share of the loss; they sum to 1
  at::Tensor answers;          // [B, T] bool: answers of generated retrieval
};

struct TrainingForward {
  at::Tensor loss;                       // scalar, differentiable: what the stage minimises
  at::Tensor token_losses;               // [B * T] fp32, a constant; not in kIndexerWarmup
  std::vector<at::Tensor> kl;            // a layer: scalar, a constant; not in kLanguageModel
  std::vector<at::Tensor> expert_loads;  // a layer: [experts] int64, undefined where dense
};

// weights: compute weights; those that the stage trains require gradients. The residual stream has
// their dtype.
TrainingForward training_forward(const ModelWeights& weights, const BlockShape& shape,
                                 const RopeFrequencies& rope, const TrainingBatch& batch,
                                 StageKind kind);

}  // namespace indexcache
