// The committed model is what models/README.md says, and the committed tokenizer and code still run
// it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numbers>
#include <numeric>
#include <set>
#include <string>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/eval/evaluate.h"
#include "indexcache/eval/text_windows.h"

namespace indexcache {
namespace {

constexpr std::uintmax_t kMaxFolderBytes = 32'000'000;
// Measured: 1.04. Uniform guesses among the 8192 tokens need 13 bits a token, about 4 a byte.
constexpr double kSaneBitsPerByte = 1.3;

std::filesystem::path source_folder() { return INDEXCACHE_SOURCE_DIR; }
std::filesystem::path model_folder() { return source_folder() / "models/small-dsa"; }

TEST(BundledModel, IsSmallEnoughForTheRepository) {
  std::uintmax_t bytes = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(model_folder())) {
    if (file.is_regular_file()) bytes += file.file_size();
  }
  EXPECT_GT(bytes, kMaxFolderBytes / 2);
  EXPECT_LE(bytes, kMaxFolderBytes);
}

TEST(BundledModel, HasTheShapesOfTheRealOnes) {
  const auto checkpoint = Checkpoint::open(model_folder());
  EXPECT_TRUE(checkpoint.notices().empty());
  const auto& config = checkpoint.config();
  EXPECT_EQ(config.architecture, Architecture::kGlmMoeDsa);
  EXPECT_GE(config.num_layers, 16);
  EXPECT_GE(std::count(config.mlp_kinds.begin(), config.mlp_kinds.end(), MlpKind::kSparse), 1);
  EXPECT_EQ(config.kv_lora_rank, 512);
  EXPECT_EQ(config.qk_rope_head_dim, 64);
  EXPECT_GE(config.index_num_heads, 8);
  EXPECT_EQ(config.index_head_dim, 128);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_GE(config.max_position_embeddings, 16384);
  EXPECT_LE(config.index_topk * 16, config.max_position_embeddings);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    EXPECT_TRUE(checkpoint.has_indexer(layer)) << "layer " << layer;  // any pattern can be searched
  }
}

// Every matrix is FP8 with scales, or BF16 and listed: what engines decide by.
TEST(BundledModel, StoresAsBf16WhatItsConfigExemptsFromFp8) {
  const auto checkpoint = Checkpoint::open(model_folder());
  const auto& quantization = checkpoint.config().json.at("quantization_config");
  const auto listed = quantization.at("modules_to_not_convert").get<std::set<std::string>>();
  std::set<std::string> stored;
  std::size_t num_fp8 = 0;
  for (const auto& name : checkpoint.names()) {
    const auto& view = checkpoint.view(name);
    if (!name.ends_with(".weight") || view.shape.size() != 2) continue;
    if (view.dtype == DType::kF8E4M3) {
      EXPECT_TRUE(checkpoint.has(name + "_scale_inv")) << name;
      ++num_fp8;
    } else {
      EXPECT_EQ(view.dtype, DType::kBF16) << name;
      stored.insert(name.substr(0, name.size() - std::string(".weight").size()));
    }
  }
  EXPECT_EQ(stored, listed);
  EXPECT_GT(num_fp8, stored.size());
  EXPECT_TRUE(listed.contains("lm_head"));
  EXPECT_TRUE(listed.contains("model.layers.0.self_attn.kv_a_proj_with_mqa"));
  EXPECT_TRUE(listed.contains("model.layers.0.self_attn.indexer.weights_proj"));
}

TEST(BundledModel, PredictsTextThatItHasNotSeen) {
  const auto tokenizer = Tokenizer::from_file(model_folder() / "tokenizer.json");
  const auto model = Model::load(Checkpoint::open(model_folder()), {});
  auto documents = read_documents(source_folder() / "texts/test.jsonl.xz");
  documents.resize(3);
  double nats = 0, bytes = 0;
  for (const auto& window :
       make_text_windows(documents, tokenizer, 300, WindowChoice::kFirstOfDocument)) {
    ASSERT_EQ(window.tokens.size(), 301u);  // the index sets hold 256: some keys are left out
    const auto losses = score_tokens(model, model.baseline(), window.tokens);
    nats += std::accumulate(losses.begin(), losses.end(), 0.0);
    bytes += static_cast<double>(window.bytes);
  }
  const double bits_per_byte = nats / std::numbers::ln2 / bytes;
  RecordProperty("bits_per_byte", std::to_string(bits_per_byte));
  EXPECT_LT(bits_per_byte, kSaneBitsPerByte);
  EXPECT_GT(bits_per_byte, 0.5);  // less would be text that it knows by heart
}

}  // namespace
}  // namespace indexcache
