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
  std::int64_t shard_bytes = std::int64_t{4} << 30;
};

// The whole folder or nothing: shards are written under temporary names; config.json comes last.
// `tokenizer_from` (may be empty) is a folder whose tokenizer files are copied.
void write_model_folder(const std::filesystem::path& folder, const ModelConfig& config,
                        const std::vector<OutputTensor>& tensors,
                        const std::filesystem::path& tokenizer_from, const WriteOptions& options);

// FP8 block quantisation of a [rows, columns] matrix (spec 1.3): scale = amax / 448 per block
// (rounded up to a power of two for ue8m0), value = e4m3(x / scale).
struct Fp8Matrix {
  std::vector<std::uint8_t> values;  // [rows, columns]
  std::vector<float> scales;         // [ceil(rows / block_rows), ceil(columns / block_columns)]
};
Fp8Matrix quantize_fp8_blocks(std::span<const float> matrix, std::int64_t rows,
                              std::int64_t columns, const QuantizationConfig& config);

// F8_E4M3FN: 0x7F and 0xFF are NaN, no infinities, largest 448.
float fp8_e4m3_to_float(std::uint8_t bits);
std::uint8_t fp8_e4m3_from_float(float value);  // round to nearest even, saturating to +-448

}  // namespace indexcache
