// The tensors of a model: every name with its shape, from the config alone (spec section 1.2).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/checkpoint/config.h"

namespace indexcache {

// How the routed experts of a layer are stored.
enum class ExpertLayout {
  kPerExpert,  // mlp.experts.{e}.{gate,up,down}_proj.weight, as published checkpoints have them
  kFused,      // mlp.experts.gate_up_proj [E, 2 I, H], gate rows first, and down_proj [E, H, I]
};

struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
};

// Name of a tensor of one layer: "model.layers.{layer}.{suffix}".
std::string layer_tensor(int layer, std::string_view suffix);
// That name taken apart; nothing if it is none of a layer. `suffix` points into `name`.
struct LayerTensor {
  int layer = 0;
  std::string_view suffix;
};
std::optional<LayerTensor> parse_layer_tensor(std::string_view name);

// The scales of an FP8 weight have its name and this suffix.
inline constexpr std::string_view kScaleSuffix = "_scale_inv";

// embed_tokens, norm, and lm_head unless it is tied.
std::vector<TensorSpec> outer_tensors(const ModelConfig& config);
// A layer's tensors without indexer and routed experts.
std::vector<TensorSpec> layer_tensors(const ModelConfig& config, int layer);
std::vector<TensorSpec> indexer_tensors(const ModelConfig& config, int layer);
// Empty for a dense layer.
std::vector<TensorSpec> expert_tensors(const ModelConfig& config, int layer, ExpertLayout layout);

}  // namespace indexcache
