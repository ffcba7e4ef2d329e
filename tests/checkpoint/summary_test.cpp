// Counts of parameters and memory against published totals, without any weights.
#include "indexcache/checkpoint/summary.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "checkpoint/small_model.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/tensor_table.h"
#include "support/temporary_folder.h"

namespace indexcache {
namespace {

ModelConfig published_config(const char* name) {
  const auto path = fmt::format("{}/tests/golden/configs/{}.json", INDEXCACHE_SOURCE_DIR, name);
  return parse_config(nlohmann::json::parse(read_file(path)), path);
}

std::int64_t count(const std::vector<TensorSpec>& tensors) {
  std::int64_t total = 0;
  for (const auto& tensor : tensors) {
    if (tensor.name.ends_with("e_score_correction_bias")) continue;  // a buffer, no parameter
    std::int64_t size = 1;
    for (const auto dimension : tensor.shape) size *= dimension;
    total += size;
  }
  return total;
}

// The table of tensors gives GLM-5.2's published total, its MTP layer (a sparse Full layer plus
// enorm, hnorm, eh_proj and shared_head.norm) included.
TEST(TensorTable, Glm52HasItsPublishedNumberOfParameters) {
  const auto config = published_config("glm_5_2_fp8");
  for (const auto layout : {ExpertLayout::kPerExpert, ExpertLayout::kFused}) {
    const auto layer = [&](int index) {
      return count(layer_tensors(config, index)) + count(expert_tensors(config, index, layout));
    };
    std::int64_t total = count(outer_tensors(config));
    for (int index = 0; index < config.num_layers; ++index) {
      total += layer(index);
      if (config.schedule.is_full(index)) total += count(indexer_tensors(config, index));
    }
    const auto hidden = config.hidden_size;
    total += layer(77) + count(indexer_tensors(config, 0)) + 3 * hidden + 2 * hidden * hidden;
    EXPECT_EQ(total, 753'329'921'024);
  }
}

TEST(CachedBytesPerToken, OfThePublishedModels) {
  const auto bytes = [](const ModelConfig& config) {
    return cached_bytes_per_token(config, config.schedule).total();
  };
  EXPECT_EQ(bytes(published_config("deepseek_v3_2")), 85'888);
  EXPECT_EQ(bytes(published_config("glm_5")), 109'824);
  EXPECT_EQ(bytes(published_config("glm_5_2_fp8")), 95'232);
}

TEST(Summarize, CountsEveryTensorOnce) {
  testing::TemporaryFolder folder;
  auto json = testing::small_config();
  const auto config = parse_config(json, "c");
  auto tensors = testing::small_tensors(config);
  // An FP8 matrix, an unused indexer tensor, an MTP layer and a stray.
  tensors["model.layers.0.mlp.up_proj.weight"] =
      testing::raw_tensor(DType::kF8E4M3, {7, 6}, std::vector<std::uint8_t>(42));
  tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] =
      testing::raw_tensor(DType::kF32, {1, 1}, std::vector{1.0f});
  tensors["model.layers.1.self_attn.indexer.wk.weight"] = testing::counted_tensor({4, 6}, 1);
  tensors["model.layers.3.eh_proj.weight"] = testing::counted_tensor({6, 12}, 1);
  tensors["stray"] = testing::counted_tensor({5}, 1);
  testing::write_small_model(folder.path(), json, tensors);
  const auto checkpoint = Checkpoint::open(folder.path());
  const auto summary = summarize(checkpoint, checkpoint.config());

  std::map<Part, PartSummary> parts;
  for (const auto& part : summary.parts) parts[part.part] = part;
  EXPECT_EQ(parts[Part::kEmbeddings].parameters, 2 * 11 * 6);
  EXPECT_EQ(parts[Part::kDenseMlp].tensors, 3);
  EXPECT_EQ(parts[Part::kDenseMlp].parameters, 3 * 42);
  EXPECT_EQ(parts[Part::kDenseMlp].bytes, 2 * 42 * 4 + 42 + 4);
  EXPECT_EQ(parts[Part::kDenseMlp].parameters_by_dtype,
            (std::map<std::string, std::int64_t>{{"F32", 84}, {"F8_E4M3", 42}}));
  EXPECT_EQ(parts[Part::kRoutedExperts].parameters, 2 * 4 * 3 * 18);
  EXPECT_EQ(parts[Part::kSharedExperts].parameters, 2 * 3 * 18);
  EXPECT_EQ(parts[Part::kRouters].parameters, 2 * (24 + 4));
  EXPECT_EQ(parts[Part::kIndexers].parameters, 2 * (8 * 5 + 4 * 6 + 4 + 4 + 2 * 6));
  EXPECT_EQ(parts[Part::kNorms].parameters, 7 * 6);
  EXPECT_EQ(parts[Part::kAttention].parameters, 3 * (30 + 5 + 75 + 36 + 4 + 72 + 54));
  EXPECT_EQ(parts[Part::kUnusedIndexers].parameters, 24);
  EXPECT_EQ(parts[Part::kMtpLayers].parameters, 72);
  EXPECT_EQ(parts[Part::kOther].parameters, 5);

  std::int64_t stored = 0;
  for (const auto& [part, counted] : parts) stored += counted.parameters;
  EXPECT_EQ(summary.stored_parameters, stored);
  EXPECT_EQ(summary.model_parameters, stored - 24 - 72 - 5);
  // Two of four experts idle, ten of eleven embedding rows not looked up.
  EXPECT_EQ(summary.active_parameters, summary.model_parameters - 2 * 2 * 3 * 18 - 10 * 6);
}

}  // namespace
}  // namespace indexcache
