#include "indexcache/checkpoint/writer.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/staged_folder.h"
#include "indexcache/checkpoint/tensor_table.h"

namespace indexcache {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {
    "tokenizer.json",      "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",    "generation_config.json"};

std::int64_t blocks(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

std::int64_t product(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

// One output tensor as it lies in a file: itself and, for F8, its scales.
std::vector<SafetensorsWriter::Entry> entries_of(const OutputTensor& tensor,
                                                 const QuantizationConfig& quantization) {
  std::vector<SafetensorsWriter::Entry> entries = {{tensor.name, tensor.dtype, tensor.shape}};
  if (tensor.dtype != DType::kF8E4M3) return entries;
  auto shape = tensor.shape;
  if (shape.size() < 2) {
    throw expectation_error(fmt::format("tensor {}", tensor.name), "a matrix, as it is F8_E4M3",
                            shape_text(shape));
  }
  shape.end()[-2] = blocks(shape.end()[-2], quantization.block_rows);
  shape.end()[-1] = blocks(shape.end()[-1], quantization.block_columns);
  entries.push_back({fmt::format("{}{}", tensor.name, kScaleSuffix), DType::kF32, shape});
  return entries;
}

template <typename Bits, typename Encode>
void write_encoded(SafetensorsWriter& writer, std::span<const float> values, Encode encode) {
  std::vector<Bits> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), encode);
  writer.write(std::as_bytes(std::span(bits)));
}

// Matrix by matrix, should there be several (fused experts).
void write_fp8(SafetensorsWriter& writer, const OutputTensor& tensor, std::span<const float> values,
               const QuantizationConfig& quantization) {
  const auto rows = tensor.shape.end()[-2], columns = tensor.shape.end()[-1];
  const auto size = static_cast<std::size_t>(rows * columns);
  Fp8Matrix all;
  for (std::size_t first = 0; first < values.size(); first += size) {
    Fp8Matrix matrix;
    try {
      matrix = quantize_fp8_blocks(values.subspan(first, size), rows, columns, quantization);
    } catch (const InputError& error) {
      throw input_error("tensor {}: {}", tensor.name, error.what());
    }
    all.values.insert(all.values.end(), matrix.values.begin(), matrix.values.end());
    all.scales.insert(all.scales.end(), matrix.scales.begin(), matrix.scales.end());
  }
  writer.write(std::as_bytes(std::span(all.values)));
  writer.write(std::as_bytes(std::span(all.scales)));
}

void write_tensor(SafetensorsWriter& writer, const OutputTensor& tensor,
                  const QuantizationConfig& quantization) {
  const auto values = tensor.values();
  INDEXCACHE_ASSERT(static_cast<std::int64_t>(values.size()) == product(tensor.shape));
  switch (tensor.dtype) {
    case DType::kF32:
      return writer.write(std::as_bytes(std::span(values)));
    case DType::kBF16:
      return write_encoded<std::uint16_t>(writer, values, bf16_from_float);
    case DType::kF16:
      return write_encoded<std::uint16_t>(writer, values, f16_from_float);
    case DType::kF8E4M3:
      return write_fp8(writer, tensor, values, quantization);
    default:
      throw expectation_error(fmt::format("tensor {}", tensor.name), "F32, F16, BF16 or F8_E4M3",
                              std::string(dtype_name(tensor.dtype)));
  }
}

struct Shard {
  std::vector<const OutputTensor*> tensors;
  std::vector<SafetensorsWriter::Entry> entries;
  std::int64_t bytes = 0;
};

std::vector<Shard> plan_shards(const std::vector<OutputTensor>& tensors,
                               const QuantizationConfig& quantization, std::int64_t shard_bytes) {
  std::vector<Shard> shards(1);
  for (const auto& tensor : tensors) {
    const auto entries = entries_of(tensor, quantization);
    std::int64_t bytes = 0;
    for (const auto& entry : entries) {
      bytes += product(entry.shape) * static_cast<std::int64_t>(dtype_size(entry.dtype));
    }
    if (!shards.back().tensors.empty() && shards.back().bytes + bytes > shard_bytes) {
      shards.emplace_back();
    }
    auto& shard = shards.back();
    shard.tensors.push_back(&tensor);
    shard.entries.insert(shard.entries.end(), entries.begin(), entries.end());
    shard.bytes += bytes;
  }
  return shards;
}

void write_shards(const fs::path& folder, const std::vector<Shard>& shards,
                  const QuantizationConfig& quantization) {
  nlohmann::json index = {{"metadata", {{"total_size", 0}}},
                          {"weight_map", nlohmann::json::object()}};
  std::int64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto file = shards.size() == 1
                          ? std::string("model.safetensors")
                          : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    SafetensorsWriter writer(folder / file, shards[i].entries);
    for (const auto* tensor : shards[i].tensors) write_tensor(writer, *tensor, quantization);
    writer.commit();
    for (const auto& entry : shards[i].entries) {
      if (!index["weight_map"].emplace(entry.name, file).second) {
        throw expectation_error(folder.string(), "tensor names that are unique", quote(entry.name));
      }
    }
    total += shards[i].bytes;
  }
  if (shards.size() == 1) return;
  index["metadata"]["total_size"] = total;
  write_file_atomically(folder / "model.safetensors.index.json", index.dump(2) + "\n");
}

void copy_tokenizer(const fs::path& from, const fs::path& to) {
  for (const auto* name : kTokenizerFiles) {
    std::error_code ignored;
    if (fs::exists(from / name, ignored)) write_file_atomically(to / name, read_file(from / name));
  }
}

// The scale of a block with this largest magnitude. At least the smallest normal number, so that
// the division by it stays finite.
float block_scale(float largest, bool power_of_two) {
  if (largest == 0) return 1;
  const float scale = std::max(largest / 448.0f, 0x1p-126f);
  if (!power_of_two) return scale;
  int exponent = 0;
  const float fraction = std::frexp(scale, &exponent);  // in [0.5, 1)
  return fraction == 0.5f ? scale : std::ldexp(1.0f, exponent);
}

// Files of an older model in the same folder that must not stay beside the new one.
bool is_weight_file(const fs::path& name) {
  const auto text = name.string();
  return text == "model.safetensors.index.json" ||
         (text.starts_with("model") && text.ends_with(".safetensors"));
}

}  // namespace

void write_model_folder(const fs::path& folder, const ModelConfig& config,
                        const std::vector<OutputTensor>& tensors, const fs::path& tokenizer_from,
                        const WriteOptions& options) {
  const bool fp8 = std::any_of(tensors.begin(), tensors.end(), [](const OutputTensor& tensor) {
    return tensor.dtype == DType::kF8E4M3;
  });
  if (fp8 && !config.quantization) {
    throw expectation_error(folder.string(), "a quantization_config, as there are F8_E4M3 tensors",
                            "none");
  }
  const auto quantization = config.quantization.value_or(QuantizationConfig());
  const auto shards = plan_shards(tensors, quantization, options.shard_bytes);
  StagedFolder staged(folder);
  write_shards(staged.path(), shards, quantization);
  if (!tokenizer_from.empty()) copy_tokenizer(tokenizer_from, staged.path());
  write_file_atomically(staged.path() / "config.json", config.json.dump(2) + "\n");
  staged.commit(is_weight_file);
}

Fp8Matrix quantize_fp8_blocks(std::span<const float> matrix, std::int64_t rows,
                              std::int64_t columns, const QuantizationConfig& config) {
  INDEXCACHE_ASSERT(static_cast<std::int64_t>(matrix.size()) == rows * columns);
  const auto column_blocks = blocks(columns, config.block_columns);
  Fp8Matrix out;
  out.values.resize(matrix.size());
  out.scales.resize(static_cast<std::size_t>(blocks(rows, config.block_rows) * column_blocks));

  // Largest magnitude of each block, then its scale.
  const auto scale_of = [&](std::int64_t row, std::int64_t column) -> float& {
    return out.scales[row / config.block_rows * column_blocks + column / config.block_columns];
  };
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const float value = matrix[row * columns + column];
      if (!std::isfinite(value)) {
        throw expectation_error(fmt::format("value [{}, {}]", row, column), "a finite number",
                                fmt::format("{}", value));
      }
      scale_of(row, column) = std::max(scale_of(row, column), std::fabs(value));
    }
  }
  for (float& scale : out.scales) scale = block_scale(scale, config.scale_is_power_of_two);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const auto at = static_cast<std::size_t>(row * columns + column);
      out.values[at] = fp8_e4m3_from_float(matrix[at] / scale_of(row, column));
    }
  }
  return out;
}

}  // namespace indexcache
