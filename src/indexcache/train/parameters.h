// The parameters of a model as one list: what the optimiser, the training state and the export walk
// over.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "indexcache/checkpoint/config.h"
#include "indexcache/model/load_weights.h"

namespace indexcache {

enum class ParameterPart {
  kModel,          // learns from the language model's loss
  kIndexer,        // learns from the KL
  kSelectionBias,  // balances experts; no gradient
};

enum class ParameterInit { kNormal, kResidual, kOnes, kZeros };  // kResidual: into the residual

enum class ParameterStorage {
  kFp32,     // stored and computed in fp32
  kRouting,  // stored in bf16, computed in fp32: router, indexer norm, weights_proj
  kBf16,     // stored in bf16, also in an FP8 folder
  kFp8,      // 128 x 128 blocks in an FP8 folder
};

struct Parameter {
  std::string name;  // as in the checkpoint; stacked experts as transformers names them in memory
  at::Tensor* tensor;
  std::vector<std::int64_t> shape;
  ParameterPart part;
  ParameterInit init;
  ParameterStorage storage;
  int layer;  // -1: of no layer

  bool is_matrix() const { return shape.size() >= 2; }
};

// Gives `weights` the structure that `config` asks for, with an indexer in the layers where
// has_indexer [num_layers] says so, and lists its tensors, which are left undefined. The pointers
// live as long as `weights` stays where it is.
std::vector<Parameter> list_parameters(const ModelConfig& config,
                                       const std::vector<bool>& has_indexer, ModelWeights& weights);

// N(0, deviation), o_proj and down_proj scaled by 1 / sqrt(2 layers), norms 1. Drawn on the CPU:
// the same for every device.
void initialize(const std::vector<Parameter>& parameters, int num_layers, double deviation,
                std::uint64_t seed, at::Device device);

}  // namespace indexcache
