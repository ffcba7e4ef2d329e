// A small model of random weights in a folder: four layers, the first dense, every layer with an
// indexer that selects 8 tokens.
#pragma once

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "indexcache/base/file.h"
#include "indexcache/base/random.h"
#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/safetensors.h"
#include "indexcache/checkpoint/tensor_table.h"
#include "indexcache/model/model.h"

namespace indexcache::testing {

inline nlohmann::json random_model_config(std::int64_t vocab_size) {
  return {{"model_type", "glm_moe_dsa"},
          {"vocab_size", vocab_size},
          {"hidden_size", 48},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 4},
          {"q_lora_rank", 24},
          {"kv_lora_rank", 32},
          {"qk_nope_head_dim", 16},
          {"qk_rope_head_dim", 8},
          {"v_head_dim", 16},
          {"index_n_heads", 8},
          {"index_head_dim", 16},
          {"index_topk", 8},
          {"first_k_dense_replace", 1},
          {"intermediate_size", 64},
          {"moe_intermediate_size", 32},
          {"n_routed_experts", 4},
          {"num_experts_per_tok", 2},
          {"n_shared_experts", 1},
          {"rope_parameters", {{"rope_theta", 10000.0}, {"rope_type", "default"}}},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-6},
          {"eos_token_id", vocab_size - 1}};
}

// Matrices normal(0, 1 / sqrt(fan-in)), the head's larger so that predictions are far from even;
// norms 1, biases 0.
inline std::vector<float> random_values(const TensorSpec& spec, std::mt19937_64& random) {
  std::int64_t count = 1;
  for (const auto size : spec.shape) count *= size;
  std::vector<float> values(static_cast<std::size_t>(count));
  const bool matrix = spec.shape.size() > 1;
  const bool head = spec.name == "lm_head.weight";
  const double scale = (head ? 3.0 : 1.0) / std::sqrt(static_cast<double>(spec.shape.back()));
  for (auto& value : values) {
    if (matrix) {
      const double radius = std::sqrt(-2.0 * std::log(1.0 - draw_unit(random)));
      value =
          static_cast<float>(scale * radius * std::cos(2.0 * std::numbers::pi * draw_unit(random)));
    } else {
      value = spec.name.ends_with("bias") ? 0.0f : 1.0f;
    }
  }
  return values;
}

inline void write_random_model(const std::filesystem::path& folder, std::int64_t vocab_size) {
  const auto json = random_model_config(vocab_size);
  const ModelConfig config = parse_config(json, "random model");
  std::vector<TensorSpec> specs = outer_tensors(config);
  const auto add = [&](const std::vector<TensorSpec>& more) {
    specs.insert(specs.end(), more.begin(), more.end());
  };
  for (int layer = 0; layer < config.num_layers; ++layer) {
    add(layer_tensors(config, layer));
    add(indexer_tensors(config, layer));
    add(expert_tensors(config, layer, ExpertLayout::kFused));
  }
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& spec : specs) entries.push_back({spec.name, DType::kF32, spec.shape});
  SafetensorsWriter writer(folder / "model.safetensors", entries);
  std::mt19937_64 random(17);
  for (const auto& spec : specs) {
    const std::vector<float> values = random_values(spec, random);
    writer.write(std::as_bytes(std::span(values)));
  }
  writer.commit();
  write_file_atomically(folder / "config.json", json.dump());
}

// On one thread: its matrices are too small to share.
inline Model random_model(const std::filesystem::path& folder, std::int64_t vocab_size) {
  at::set_num_threads(1);
  write_random_model(folder, vocab_size);
  return Model::load(Checkpoint::open(folder), {});
}

}  // namespace indexcache::testing
