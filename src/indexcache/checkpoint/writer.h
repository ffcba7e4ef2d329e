// Writes a model folder: shards, model.safetensors.index.json, config.json. What it leaves loads in
// transformers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/number_formats.h"
#include "indexcache/checkpoint/safetensors.h"

namespace indexcache {

struct OutputTensor {
  std::string name;
  DType dtype;  // kF32, kBF16, kF16 or kF8E4M3; F8 writes <name>_scale_inv beside it
  std::vector<std::int64_t> shape;
  // Called once, when its turn comes: the values in fp32.
  std::function<std::vector<float>()> values;
};

struct WriteOptions {
  std::int64_t shard_bytes = std::int64_t{4} << 30;  // of data; a larger tensor has its own shard
};

// The whole folder or nothing: all is written into a hidden folder beside it, which then takes its
// name in one step. A folder that is there already is replaced if it holds files only: its weights,
// config and, with `tokenizer_from`, tokenizer give way, its other files stay. `tokenizer_from` (may
// be empty) is a folder whose tokenizer files are copied. config.json is config.json as it is,
// modules_to_not_convert included; F8 tensors ask for a quantization in it.
void write_model_folder(const std::filesystem::path& folder, const ModelConfig& config,
                        const std::vector<OutputTensor>& tensors,
                        const std::filesystem::path& tokenizer_from, const WriteOptions& options);

// FP8 block quantisation of a [rows, columns] matrix (spec 1.3): scale = amax / 448 per block
// (rounded up to a power of two for ue8m0), value = e4m3(x / scale). A block of zeros has scale 1.
// Throws InputError for values that are not finite.
struct Fp8Matrix {
  std::vector<std::uint8_t> values;  // [rows, columns]
  std::vector<float> scales;         // [ceil(rows / block_rows), ceil(columns / block_columns)]
};
Fp8Matrix quantize_fp8_blocks(std::span<const float> matrix, std::int64_t rows,
                              std::int64_t columns, const QuantizationConfig& config);

}  // namespace indexcache
