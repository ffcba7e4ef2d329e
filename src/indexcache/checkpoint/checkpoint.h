// A Hugging Face model folder: config.json and the tensors of its safetensors shards, mapped, never
// copied as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/safetensors.h"
#include "indexcache/checkpoint/tensor_table.h"

namespace indexcache {

class Checkpoint {
 public:
  // Reads config.json and the headers of model.safetensors or, without one, of the shards that
  // model.safetensors.index.json names. Checks assertions A1-A4 of the model specification: every
  // tensor that the config asks for is there with its shape, FP8 tensors have scales and only they,
  // Full layers have indexer tensors. Extra indexer tensors on Shared layers, MTP layers and
  // tensors of no known use are noticed (notices()), not errors.
  static Checkpoint open(const std::filesystem::path& folder);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& folder() const;
  const ModelConfig& config() const;
  const std::vector<std::string>& notices() const;
  std::vector<std::string> names() const;  // sorted; MTP layers and unused tensors included

  bool has(std::string_view name) const;
  // The stored tensor. Throws InputError if there is none.
  const TensorView& view(std::string_view name) const;

  // Whether layer has a usable indexer (all its tensors are stored, in the shapes of the config).
  bool has_indexer(int layer) const;
  // How a sparse layer's experts are stored.
  ExpertLayout expert_layout(int layer) const;

  // Reads a tensor of this shape as fp32 (or bf16, round to nearest even) into `out`, which holds
  // product(shape) elements. F32, F16, BF16 are converted; F8_E4M3 is multiplied by its
  // `<name>_scale_inv` blocks: value[i, j] = fp8[i, j] * scale[i / block_rows, j / block_columns].
  // Throws InputError naming tensor, file, expected and found shape or dtype. Thread-safe.
  void read(std::string_view name, std::span<const std::int64_t> shape, std::span<float> out) const;
  void read_bf16(std::string_view name, std::span<const std::int64_t> shape,
                 std::span<std::uint16_t> out) const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace indexcache
