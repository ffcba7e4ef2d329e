// Model folders that are written: they read back, appear whole, and leave nothing half done.
#include "indexcache/checkpoint/writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <stdexcept>

#include "checkpoint/small_model.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

namespace fs = std::filesystem;
using testing::floats_of;
using ::testing::HasSubstr;
using testing::small_config;
using testing::small_tensors;
using testing::TemporaryFolder;
using testing::thrown;

std::vector<OutputTensor> small_output(const ModelConfig& config, DType dtype) {
  std::vector<OutputTensor> output;
  for (const auto& [name, tensor] : small_tensors(config)) {
    const bool matrix = tensor.shape.size() == 2;
    output.push_back({name, dtype == DType::kF8E4M3 && !matrix ? DType::kBF16 : dtype, tensor.shape,
                      [values = floats_of(tensor)] { return values; }});
  }
  return output;
}

std::set<std::string> files_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.insert(entry.path().filename().string());
  }
  return names;
}

TEST(WriteModelFolder, ReadsBackInEveryFormat) {
  const auto config = parse_config(small_config(), "config.json");
  for (const auto dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    TemporaryFolder folder;
    write_model_folder(folder.path() / "m", config, small_output(config, dtype), {}, {});
    EXPECT_EQ(files_in(folder.path() / "m"),
              (std::set<std::string>{"config.json", "model.safetensors"}));
    const auto checkpoint = Checkpoint::open(folder.path() / "m");
    EXPECT_EQ(checkpoint.config().schedule, config.schedule);
    for (const auto& [name, tensor] : small_tensors(config)) {
      EXPECT_EQ(checkpoint.view(name).dtype, dtype);
      EXPECT_EQ(floats_of(checkpoint, name), floats_of(tensor))
          << name;  // all are exact in 16 bits
    }
  }
}

TEST(WriteModelFolder, SplitsIntoShardsThatTheIndexNames) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder;
  write_model_folder(folder.path() / "m", config, small_output(config, DType::kF32), {},
                     {.shard_bytes = 600});
  const auto files = files_in(folder.path() / "m");
  EXPECT_GT(files.size(), 5u);
  EXPECT_TRUE(files.contains("model.safetensors.index.json"));
  EXPECT_FALSE(files.contains("model.safetensors"));
  const auto index =
      nlohmann::json::parse(read_file(folder.path() / "m" / "model.safetensors.index.json"));
  std::int64_t total = 0;
  for (const auto& [name, tensor] : small_tensors(config)) {
    total += static_cast<std::int64_t>(tensor.bytes.size());
    EXPECT_TRUE(files.contains(index["weight_map"][name])) << name;
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  const auto checkpoint = Checkpoint::open(folder.path() / "m");
  for (const auto& [name, tensor] : small_tensors(config)) {
    EXPECT_EQ(floats_of(checkpoint, name), floats_of(tensor)) << name;
  }
}

TEST(WriteModelFolder, WritesFp8WithScales) {
  auto json = small_config();
  json["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {4, 4}}};
  const auto config = parse_config(json, "config.json");
  TemporaryFolder folder;
  write_model_folder(folder.path() / "m", config, small_output(config, DType::kF8E4M3), {},
                     {.shard_bytes = 600});
  const auto checkpoint = Checkpoint::open(folder.path() / "m");
  EXPECT_EQ(checkpoint.view("model.layers.0.mlp.up_proj.weight_scale_inv").shape,
            (std::vector<std::int64_t>{2, 2}));
  for (const auto& [name, tensor] : small_tensors(config)) {
    const auto expected = floats_of(tensor);
    const auto values = floats_of(checkpoint, name);
    for (std::size_t i = 0; i < values.size(); ++i) {
      // Half a step of three fraction bits, or of the smallest number a block of maximum 12 holds.
      ASSERT_NEAR(values[i], expected[i], std::max(std::fabs(expected[i]) / 16, 12.0f / 448 / 512))
          << name;
    }
  }
}

TEST(WriteModelFolder, Fp8NeedsAQuantization) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder;
  EXPECT_THAT(thrown<InputError>([&] {
                write_model_folder(folder.path() / "m", config,
                                   small_output(config, DType::kF8E4M3), {}, {});
              }),
              HasSubstr("a quantization_config"));
}

TEST(WriteModelFolder, ReplacesAModelAndKeepsOtherFiles) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder, tokenizer;
  tokenizer.write("tokenizer.json", "new");
  tokenizer.write("chat_template.jinja", "template");
  tokenizer.write("model.safetensors", "not a tokenizer's");
  const auto target = folder.path() / "m";
  write_model_folder(target, config, small_output(config, DType::kF32), {}, {.shard_bytes = 600});
  write_file_atomically(target / "README.md", "read me");
  write_file_atomically(target / "tokenizer.json", "old");
  write_model_folder(target / "", config, small_output(config, DType::kBF16), tokenizer.path(), {});
  EXPECT_EQ(files_in(target),
            (std::set<std::string>{"README.md", "chat_template.jinja", "config.json",
                                   "model.safetensors", "tokenizer.json"}));
  EXPECT_EQ(read_file(target / "README.md"), "read me");
  EXPECT_EQ(read_file(target / "tokenizer.json"), "new");
  EXPECT_EQ(files_in(folder.path()), std::set<std::string>{"m"});
}

TEST(WriteModelFolder, AFailureLeavesTheOldFolderAsItWas) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder;
  const auto target = folder.path() / "m";
  write_model_folder(target, config, small_output(config, DType::kF32), {}, {});
  const auto before = read_file(target / "model.safetensors");
  auto output = small_output(config, DType::kBF16);
  output.back().values = []() -> std::vector<float> { throw std::runtime_error("lost"); };
  EXPECT_EQ(thrown<std::runtime_error>([&] { write_model_folder(target, config, output, {}, {}); }),
            "lost");
  EXPECT_EQ(read_file(target / "model.safetensors"), before);
  EXPECT_EQ(files_in(folder.path()), std::set<std::string>{"m"});
}

TEST(WriteModelFolder, ClearsWhatAKilledRunLeft) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder;
  fs::create_directory(folder.path() / ".m.partial");
  write_file_atomically(folder.path() / ".m.partial" / "model-00001-of-00009.safetensors", "x");
  write_model_folder(folder.path() / "m", config, small_output(config, DType::kF32), {}, {});
  EXPECT_EQ(files_in(folder.path() / "m"),
            (std::set<std::string>{"config.json", "model.safetensors"}));
  EXPECT_EQ(files_in(folder.path()), std::set<std::string>{"m"});
}

TEST(WriteModelFolder, RefusesTargetsItMustNotReplace) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder;
  const auto refusal = [&](const fs::path& target) {
    return thrown<InputError>([&] { write_model_folder(target, config, {}, {}, {}); });
  };
  folder.write("file", "x");
  EXPECT_THAT(refusal(folder.path() / "file"), HasSubstr("expected a folder, found a file"));
  EXPECT_THAT(refusal(folder.path() / "none" / "m"), HasSubstr("none to exist"));
  fs::create_directories(folder.path() / "home" / "photos");
  EXPECT_THAT(refusal(folder.path() / "home"), HasSubstr("found the folder \"photos\""));
  EXPECT_THAT(refusal("/"), HasSubstr("found the root"));
  EXPECT_TRUE(fs::exists(folder.path() / "home" / "photos"));
}

TEST(WriteModelFolder, RefusesANameTwiceAcrossShards) {
  const auto config = parse_config(small_config(), "config.json");
  TemporaryFolder folder;
  const OutputTensor tensor = {"a", DType::kF32, {4}, [] { return std::vector<float>(4); }};
  EXPECT_THAT(
      thrown<InputError>([&] {
        write_model_folder(folder.path() / "m", config, {tensor, tensor}, {}, {.shard_bytes = 16});
      }),
      HasSubstr("unique"));
}

class QuantizeFp8 : public ::testing::TestWithParam<bool> {};

TEST_P(QuantizeFp8, IsWithinHalfAStepOfEveryBlock) {
  const bool power_of_two = GetParam();
  const QuantizationConfig config = {
      .block_rows = 4, .block_columns = 8, .scale_is_power_of_two = power_of_two};
  constexpr int kRows = 10, kColumns = 21;  // partial blocks on both sides
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> matrix(kRows * kColumns);
  for (float& value : matrix) value = normal(random) * std::exp(3 * normal(random));
  for (int column = 8; column < 16; ++column) matrix[column] = 0;  // row 0 of one block
  const auto quantized = quantize_fp8_blocks(matrix, kRows, kColumns, config);
  ASSERT_EQ(quantized.scales.size(), 9u);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      const float scale = quantized.scales[row / 4 * 3 + column / 8];
      const float x = matrix[row * kColumns + column];
      const float y = fp8_e4m3_to_float(quantized.values[row * kColumns + column]) * scale;
      EXPECT_NEAR(x, y, std::max(std::fabs(x) * 0x1.001p-4f, scale * 0x1p-10f));
      if (power_of_two) {
        EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
      }
    }
  }
  // The largest magnitude of each block uses the format's range: the top value, or within a factor
  // of two of it.
  for (int block = 0; block < 9; ++block) {
    float largest = 0;
    for (int row = block / 3 * 4; row < std::min(kRows, block / 3 * 4 + 4); ++row) {
      for (int column = block % 3 * 8; column < std::min(kColumns, block % 3 * 8 + 8); ++column) {
        largest = std::max(largest, std::fabs(matrix[row * kColumns + column]));
      }
    }
    const float in_units = largest / quantized.scales[block];
    EXPECT_LE(in_units, 448.0001f);
    EXPECT_GE(in_units, power_of_two ? 224.0f : 447.999f);
  }
}

INSTANTIATE_TEST_SUITE_P(Scales, QuantizeFp8, ::testing::Bool());

TEST(QuantizeFp8Blocks, EdgeValues) {
  const QuantizationConfig plain, exponents{.scale_is_power_of_two = true};
  const auto zeros = quantize_fp8_blocks(std::vector<float>(4), 2, 2, plain);
  EXPECT_EQ(zeros.scales, std::vector<float>{1});
  EXPECT_EQ(zeros.values, std::vector<std::uint8_t>(4));
  // A power of two stays itself; one step above it rounds up to the next.
  const float exact = 448.0f * 0x1p-3f;
  EXPECT_EQ(quantize_fp8_blocks(std::vector{exact}, 1, 1, exponents).scales[0], 0x1p-3f);
  EXPECT_EQ(
      quantize_fp8_blocks(std::vector{std::nextafter(exact, 1e3f)}, 1, 1, exponents).scales[0],
      0x1p-2f);
  EXPECT_TRUE(std::isfinite(quantize_fp8_blocks(std::vector{1e-44f}, 1, 1, plain).scales[0]));
  EXPECT_THAT(thrown<InputError>([&] {
                quantize_fp8_blocks(std::vector{0.0f, std::nanf("")}, 1, 2, plain);
              }),
              HasSubstr("value [0, 1]: expected a finite number"));
}

}  // namespace
}  // namespace indexcache
