// A model of a few hundred numbers in a folder, to be spoiled by tests: 3 layers (Full, Shared,
// Full), the first dense, 4 experts.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/safetensors.h"
#include "indexcache/checkpoint/tensor_table.h"

namespace indexcache::testing {

inline nlohmann::json small_config() {
  return {{"model_type", "glm_moe_dsa"},
          {"vocab_size", 11},
          {"hidden_size", 6},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 3},
          {"q_lora_rank", 5},
          {"kv_lora_rank", 4},
          {"qk_nope_head_dim", 3},
          {"qk_rope_head_dim", 2},
          {"v_head_dim", 3},
          {"index_n_heads", 2},
          {"index_head_dim", 4},
          {"index_topk", 4},
          {"first_k_dense_replace", 1},
          {"intermediate_size", 7},
          {"moe_intermediate_size", 3},
          {"n_routed_experts", 4},
          {"num_experts_per_tok", 2},
          {"rope_parameters", {{"rope_theta", 10000.0}, {"rope_type", "default"}}},
          {"max_position_embeddings", 64},
          {"index_topk_pattern", "FSF"}};
}

// Tensors by name, each with its bytes.
struct RawTensor {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};
using RawTensors = std::map<std::string, RawTensor>;

template <typename Value>
RawTensor raw_tensor(DType dtype, std::vector<std::int64_t> shape,
                     const std::vector<Value>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {dtype, std::move(shape), {bytes.begin(), bytes.end()}};
}

inline std::vector<float> floats_of(const RawTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

// A tensor of a checkpoint as floats.
inline std::vector<float> floats_of(const Checkpoint& checkpoint, const std::string& name) {
  const auto& view = checkpoint.view(name);
  std::vector<float> values(static_cast<std::size_t>(view.num_elements()));
  checkpoint.read(name, view.shape, values);
  return values;
}

// Value number i of the n-th tensor: distinct and exact in bf16.
inline RawTensor counted_tensor(std::vector<std::int64_t> shape, int n) {
  std::int64_t count = 1;
  for (const auto size : shape) count *= size;
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>((i + 17 * n) % 251) / 16.0f - 4.0f);
  }
  return raw_tensor(DType::kF32, std::move(shape), values);
}

inline RawTensors small_tensors(const ModelConfig& config,
                                ExpertLayout layout = ExpertLayout::kPerExpert) {
  RawTensors tensors;
  const auto add = [&](const std::vector<TensorSpec>& specs) {
    for (const auto& spec : specs) {
      tensors[spec.name] = counted_tensor(spec.shape, static_cast<int>(tensors.size()));
    }
  };
  add(outer_tensors(config));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    add(layer_tensors(config, layer));
    if (config.schedule.is_full(layer)) add(indexer_tensors(config, layer));
    add(expert_tensors(config, layer, layout));
  }
  return tensors;
}

// Not by SafetensorsWriter: data in the order of the names, aligned to nothing, no fsync.
inline void write_tensors(const std::filesystem::path& file, const RawTensors& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const auto begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    header[name] = {{"dtype", dtype_name(tensor.dtype)},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  auto text = header.dump();
  text.append((text.size() + 1) % 2, ' ');  // odd: every number in the data is misaligned
  const std::uint64_t length = text.size();
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(&length), sizeof(length))
      .write(text.data(), static_cast<std::streamsize>(text.size()))
      .write(data.data(), static_cast<std::streamsize>(data.size()));
}

inline void write_small_model(const std::filesystem::path& folder, const nlohmann::json& config,
                              const RawTensors& tensors) {
  std::ofstream(folder / "config.json") << config;
  write_tensors(folder / "model.safetensors", tensors);
}

}  // namespace indexcache::testing
