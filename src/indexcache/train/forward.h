// The forward pass of one training step, differentiable.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "indexcache/layers/block.h"
#include "indexcache/layers/rope.h"
#include "indexcache/model/load_weights.h"
#include "indexcache/policy/pattern.h"

namespace indexcache {

// What a stage trains, and under which attention (spec section 5).
enum class StageKind {
  kLanguageModel,  // "lm": the model but its indexers; dense causal attention
  kIndexerWarmup,  // "indexer": the indexers alone, towards the dense attention of the frozen model
  // "sparse": attention over the index sets; the model learns from the language model's loss, the
  // indexers from the KL on the set
  kSparse,
  kSparseIndexer,  // "sparse-indexer": the same of a frozen model: the indexers alone
};
bool trains_model(StageKind kind);
bool trains_indexers(StageKind kind);
bool is_sparse(StageKind kind);

// Whose attention a Full layer's indexer learns (indexer_attention.h). The same where no layer is
// Shared.
enum class IndexLoss {
  kOwn,      // "own": its own layer's alone, DSA's loss
  kMulti,    // "multi": L_multi over its readers
  kAverage,  // "average": L_avg over its readers
};

struct TrainingBatch {
  at::Tensor inputs, targets;  // [B, T] int64
  at::Tensor weights;          // [B, T] fp32: each token's share of the loss; they sum to 1 over
                               // the step, of which this is the part of one process
  at::Tensor answers;          // [B, T] bool: answers of generated retrieval
  double share = 1;            // B by the sequences of the step
};

struct TrainingForward {
  at::Tensor loss;                       // scalar, differentiable: what the stage minimises
  at::Tensor token_losses;               // [B * T] fp32, a constant; where the model is trained
  std::vector<at::Tensor> kl;            // a Full layer: its loss, scalar, a constant, of these
                                         // sequences; where indexers are trained
  std::vector<at::Tensor> expert_loads;  // a layer: [experts] int64, undefined where dense
};

// weights: compute weights; those that the stage trains require gradients. The residual stream has
// their dtype. pattern: whose index set each layer reads; its Full layers have indexers. In the
// stages with dense attention it only says whose attention an indexer learns.
TrainingForward training_forward(const ModelWeights& weights, const BlockShape& shape,
                                 const RopeFrequencies& rope, const TrainingBatch& batch,
                                 StageKind kind, const Pattern& pattern, IndexLoss index_loss);

}  // namespace indexcache
