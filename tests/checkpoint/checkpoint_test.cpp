// Model folders: assertions A1-A4 of the specification, every storage form, hostile folders.
#include "indexcache/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "checkpoint/small_model.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/number_formats.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using nlohmann::json;
using testing::counted_tensor;
using ::testing::ElementsAre;
using testing::floats_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::raw_tensor;
using testing::RawTensors;
using testing::small_config;
using testing::small_tensors;
using testing::TemporaryFolder;
using testing::thrown;
using testing::write_small_model;
using testing::write_tensors;

class CheckpointTest : public ::testing::Test {
 protected:
  Checkpoint open() {
    write_small_model(folder.path(), config, tensors);
    return Checkpoint::open(folder.path());
  }
  std::string refusal() {
    return thrown<InputError>([&] { open(); });
  }

  TemporaryFolder folder;
  json config = small_config();
  RawTensors tensors = small_tensors(parse_config(config, "config.json"));
};

constexpr const char* kUpProj = "model.layers.0.mlp.up_proj.weight";  // [7, 6]

TEST_F(CheckpointTest, OpensAndReads) {
  const auto checkpoint = open();
  EXPECT_THAT(checkpoint.notices(), IsEmpty());
  EXPECT_EQ(checkpoint.folder(), folder.path());
  EXPECT_EQ(checkpoint.config().schedule.str(), "FSF");
  EXPECT_TRUE(checkpoint.has_indexer(0));
  EXPECT_FALSE(checkpoint.has_indexer(1));
  EXPECT_TRUE(checkpoint.has_indexer(2));
  EXPECT_EQ(checkpoint.expert_layout(1), ExpertLayout::kPerExpert);
  EXPECT_EQ(checkpoint.names().size(), tensors.size());
  EXPECT_TRUE(std::ranges::is_sorted(checkpoint.names()));
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(floats_of(checkpoint, name), floats_of(tensor)) << name;
  }
  EXPECT_FALSE(checkpoint.has("model.layers.9.x"));
  EXPECT_THAT(thrown<InputError>([&] { checkpoint.view("model.layers.9.x"); }),
              HasSubstr("tensor model.layers.9.x, found none"));
}

TEST_F(CheckpointTest, FusedExperts) {
  tensors = small_tensors(parse_config(config, "c"), ExpertLayout::kFused);
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint.expert_layout(2), ExpertLayout::kFused);
  EXPECT_EQ(checkpoint.view("model.layers.2.mlp.experts.gate_up_proj").shape,
            (std::vector<std::int64_t>{4, 6, 6}));
  EXPECT_THAT(checkpoint.notices(), IsEmpty());
}

TEST_F(CheckpointTest, TiedEmbeddingsNeedNoHead) {
  tensors.erase("lm_head.weight");
  EXPECT_THAT(refusal(), HasSubstr("tensor lm_head.weight [11, 6], found none"));
  config["tie_word_embeddings"] = true;
  EXPECT_THAT(open().notices(), IsEmpty());
}

TEST_F(CheckpointTest, EveryMissingTensorIsNamed) {
  for (const auto& [name, tensor] : RawTensors(tensors)) {
    tensors.erase(name);
    EXPECT_THAT(refusal(), HasSubstr(name));
    tensors[name] = tensor;
  }
}

TEST_F(CheckpointTest, EveryWrongShapeIsNamed) {
  for (const auto& [name, tensor] : RawTensors(tensors)) {
    auto shape = tensor.shape;
    ++shape.back();
    tensors[name] = counted_tensor(shape, 0);
    const auto message = refusal();
    EXPECT_THAT(message, HasSubstr(name));
    EXPECT_THAT(message, HasSubstr(shape_text(tensor.shape)));
    EXPECT_THAT(message, HasSubstr("found " + shape_text(shape)));
    tensors[name] = tensor;
  }
}

TEST_F(CheckpointTest, WrongDtypesAreRefused) {
  const auto shape = tensors.at(kUpProj).shape;
  tensors[kUpProj] = raw_tensor(DType::kI32, shape, std::vector<std::int32_t>(42));
  EXPECT_THAT(refusal(), HasSubstr("expected F32, F16, BF16 or F8_E4M3, found I32"));
  tensors[kUpProj] = raw_tensor(DType::kF64, shape, std::vector<double>(42));
  EXPECT_THAT(refusal(), HasSubstr("found F64"));
  tensors[kUpProj] = raw_tensor(DType::kF8E5M2, shape, std::vector<std::uint8_t>(42));
  EXPECT_THAT(refusal(), HasSubstr("found F8_E5M2"));
}

TEST_F(CheckpointTest, AFullLayerWithoutIndexerListsTheTensors) {
  for (const char* part : {"wq_b.weight", "k_norm.bias"}) {
    tensors.erase(std::string("model.layers.2.self_attn.indexer.") + part);
  }
  const auto message = refusal();
  EXPECT_THAT(message, HasSubstr("layer 2 is Full"));
  EXPECT_THAT(message, HasSubstr("model.layers.2.self_attn.indexer.wq_b.weight, "
                                 "model.layers.2.self_attn.indexer.k_norm.bias"));
}

TEST_F(CheckpointTest, IndexersOfSharedLayersAreNoticed) {
  const auto parsed = parse_config(config, "c");
  for (const auto& spec : indexer_tensors(parsed, 1)) {
    tensors[spec.name] = counted_tensor(spec.shape, 1);
  }
  {
    const auto checkpoint = open();
    EXPECT_TRUE(checkpoint.has_indexer(1));
    EXPECT_THAT(checkpoint.notices(), ElementsAre(HasSubstr("Shared layers 1 hold indexer")));
  }
  // Incomplete or of another shape: not usable, still no error.
  tensors["model.layers.1.self_attn.indexer.wk.weight"] = counted_tensor({4, 5}, 1);
  EXPECT_FALSE(open().has_indexer(1));
  tensors.erase("model.layers.1.self_attn.indexer.wk.weight");
  const auto checkpoint = open();
  EXPECT_FALSE(checkpoint.has_indexer(1));
  EXPECT_THAT(checkpoint.notices(), ElementsAre(HasSubstr("Shared layers 1 hold indexer")));
}

TEST_F(CheckpointTest, MtpLayersAreSkippedWithANotice) {
  tensors["model.layers.3.eh_proj.weight"] = counted_tensor({6, 12}, 1);
  tensors["model.layers.3.enorm.weight"] = counted_tensor({6}, 1);
  const char* notice = "layer 3 is for multi-token prediction: its 2 tensors are skipped";
  EXPECT_THAT(open().notices(), ElementsAre(notice));  // it looks like one
  config["num_nextn_predict_layers"] = 1;
  EXPECT_THAT(open().notices(), ElementsAre(notice));
  tensors.erase("model.layers.3.eh_proj.weight");
  EXPECT_THAT(open().notices(), ElementsAre(HasSubstr("its 1 tensors")));
  // Neither declared nor looking like one: the config is cut short.
  config["num_nextn_predict_layers"] = 0;
  EXPECT_THAT(refusal(), HasSubstr("num_hidden_layers 3 and num_nextn_predict_layers 0, found "
                                   "tensors of a layer 3"));
}

TEST_F(CheckpointTest, UnknownTensorsAreNoticed) {
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = counted_tensor({1}, 1);
  tensors["odd\nname"] = counted_tensor({1}, 1);
  EXPECT_THAT(open().notices(), ElementsAre("2 tensors of no known use are ignored, the first is "
                                            "\"model.layers.0.self_attn.rotary_emb.inv_freq\""));
}

TEST_F(CheckpointTest, ReadChecksItsShape) {
  const auto checkpoint = open();
  std::vector<float> out(42);
  const std::vector<std::int64_t> turned = {6, 7}, flat = {42};
  EXPECT_THAT(thrown<InputError>([&] { checkpoint.read(kUpProj, turned, out); }),
              HasSubstr("expected shape [6, 7], found [7, 6]"));
  EXPECT_THAT(thrown<InputError>([&] { checkpoint.read(kUpProj, flat, out); }),
              HasSubstr("expected shape [42], found [7, 6]"));
}

// --- Formats --------------------------------------------------------------------------------------

TEST_F(CheckpointTest, ReadsEveryFormatToBothOutputs) {
  const std::vector<std::int64_t> shape = {7, 6};
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(42);
  for (float& value : values) value = normal(random);
  std::vector<std::uint16_t> bf16(42), f16(42);
  std::ranges::transform(values, bf16.begin(), bf16_from_float);
  std::ranges::transform(values, f16.begin(), f16_from_float);
  const auto check = [&](const auto& expected) {
    const auto checkpoint = open();
    std::vector<float> out(42);
    checkpoint.read(kUpProj, shape, out);
    std::vector<std::uint16_t> out16(42);
    checkpoint.read_bf16(kUpProj, shape, out16);
    for (int i = 0; i < 42; ++i) {
      EXPECT_EQ(out[i], expected(i));
      EXPECT_EQ(out16[i], bf16_from_float(expected(i)));
    }
  };
  tensors[kUpProj] = raw_tensor(DType::kF32, shape, values);
  check([&](int i) { return values[i]; });
  tensors[kUpProj] = raw_tensor(DType::kBF16, shape, bf16);
  check([&](int i) { return bf16_to_float(bf16[i]); });
  tensors[kUpProj] = raw_tensor(DType::kF16, shape, f16);
  check([&](int i) { return f16_to_float(f16[i]); });
}

// A model whose one FP8 matrix has `rows` x `columns`, for any block layout.
class Fp8Test : public CheckpointTest {
 protected:
  void make(std::int64_t rows, std::int64_t columns) {
    config["intermediate_size"] = rows;
    config["hidden_size"] = columns;
    tensors = small_tensors(parse_config(config, "c"));
    std::mt19937 random(7);
    codes.resize(static_cast<std::size_t>(rows * columns));
    for (auto& code : codes) {
      do {
        code = static_cast<std::uint8_t>(random());
      } while ((code & 0x7f) == 0x7f);
    }
    shape = {rows, columns};
    tensors[kUpProj] = raw_tensor(DType::kF8E4M3, shape, codes);
  }
  void set_scale(const testing::RawTensor& scale) {
    tensors[std::string(kUpProj) + "_scale_inv"] = scale;
  }
  // scale(i, j) of each element, by the definition.
  void expect_values(const std::function<float(std::int64_t, std::int64_t)>& scale) {
    const auto checkpoint = open();
    EXPECT_THAT(checkpoint.notices(), IsEmpty());
    std::vector<float> out(codes.size());
    checkpoint.read(kUpProj, shape, out);
    std::vector<std::uint16_t> out16(codes.size());
    checkpoint.read_bf16(kUpProj, shape, out16);
    for (std::int64_t i = 0; i < shape[0]; ++i) {
      for (std::int64_t j = 0; j < shape[1]; ++j) {
        const auto at = static_cast<std::size_t>(i * shape[1] + j);
        const float expected = fp8_e4m3_to_float(codes[at]) * scale(i, j);
        ASSERT_EQ(out[at], expected) << i << ", " << j;
        ASSERT_EQ(out16[at], bf16_from_float(expected)) << i << ", " << j;
      }
    }
  }

  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> codes;
};

std::vector<float> counted_scales(std::int64_t count) {
  std::vector<float> scales;
  for (std::int64_t i = 0; i < count; ++i) scales.push_back(0.01f * static_cast<float>(i + 1));
  return scales;
}

TEST_F(Fp8Test, PartialBlocks) {  // T8: the 576 rows of kv_a_proj_with_mqa
  make(576, 200);
  const auto scales = counted_scales(10);
  set_scale(raw_tensor(DType::kF32, {5, 2}, scales));
  expect_values([&](auto i, auto j) { return scales[i / 128 * 2 + j / 128]; });
}

TEST_F(Fp8Test, BlocksOfTheConfig) {
  make(10, 12);
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {4, 8}}};
  const auto scales = counted_scales(6);
  set_scale(raw_tensor(DType::kF32, {3, 2}, scales));
  expect_values([&](auto i, auto j) { return scales[i / 4 * 2 + j / 8]; });
}

TEST_F(Fp8Test, OneScaleARow) {
  make(9, 40);
  const auto scales = counted_scales(9);
  for (const auto& layout : {std::vector<std::int64_t>{9}, std::vector<std::int64_t>{9, 1}}) {
    set_scale(raw_tensor(DType::kF32, layout, scales));
    expect_values([&](auto i, auto) { return scales[i]; });
  }
}

TEST_F(Fp8Test, MxBlocksOf32WithBareExponents) {
  make(5, 96);
  std::vector<std::uint8_t> exponents;
  for (int i = 0; i < 15; ++i) exponents.push_back(static_cast<std::uint8_t>(115 + i));
  for (const auto dtype : {DType::kU8, DType::kF8E8M0}) {
    set_scale(raw_tensor(dtype, {5, 3}, exponents));
    expect_values(
        [&](auto i, auto j) { return std::ldexp(1.0f, exponents[i * 3 + j / 32] - 127); });
  }
}

TEST_F(Fp8Test, PowersOfTwoAsF32AndBf16) {
  make(130, 6);
  const std::vector<float> scales = {0x1p-7f, 0x1p-9f};
  set_scale(raw_tensor(DType::kF32, {2, 1}, scales));
  expect_values([&](auto i, auto) { return scales[i / 128]; });
  set_scale(raw_tensor(DType::kBF16, {2, 1},
                       std::vector{bf16_from_float(scales[0]), bf16_from_float(scales[1])}));
  expect_values([&](auto i, auto) { return scales[i / 128]; });
}

TEST_F(Fp8Test, FusedExpertsHaveScalesOfTheirOwn) {
  tensors = small_tensors(parse_config(config, "c"), ExpertLayout::kFused);
  const std::string name = "model.layers.1.mlp.experts.down_proj";  // [4, 6, 3]
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {4, 2}}};
  std::vector<std::uint8_t> ones(72, 0x38);
  const auto scales = counted_scales(4 * 2 * 2);
  tensors[name] = raw_tensor(DType::kF8E4M3, {4, 6, 3}, ones);
  tensors[name + "_scale_inv"] = raw_tensor(DType::kF32, {4, 2, 2}, scales);
  const auto values = floats_of(open(), name);
  for (int e = 0; e < 4; ++e) {
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 3; ++j) {
        ASSERT_EQ(values[(e * 6 + i) * 3 + j], scales[(e * 2 + i / 4) * 2 + j / 2]);
      }
    }
  }
}

TEST_F(Fp8Test, NanCodesStayNan) {
  make(7, 6);
  codes[3] = 0x7f;
  codes[4] = 0xff;
  tensors[kUpProj] = raw_tensor(DType::kF8E4M3, shape, codes);
  set_scale(raw_tensor(DType::kF32, {1, 1}, std::vector{1.0f}));
  const auto values = floats_of(open(), kUpProj);
  EXPECT_TRUE(std::isnan(values[3]) && std::isnan(values[4]));
  EXPECT_FALSE(std::isnan(values[5]));
}

TEST_F(Fp8Test, Fp8IfAndOnlyIfThereAreScales) {
  make(7, 6);
  EXPECT_THAT(refusal(), HasSubstr("expected scales model.layers.0.mlp.up_proj.weight_scale_inv"));
  tensors[kUpProj] = counted_tensor(shape, 1);
  set_scale(raw_tensor(DType::kF32, {1, 1}, std::vector{1.0f}));
  EXPECT_THAT(refusal(), HasSubstr("expected F8_E4M3, as it has scales, found F32"));
}

TEST_F(Fp8Test, ScalesThatFitNoBlockAreRefused) {
  make(300, 6);
  const auto with = [&](const testing::RawTensor& scale) {
    set_scale(scale);
    return refusal();
  };
  EXPECT_THAT(with(raw_tensor(DType::kF32, {7, 1}, counted_scales(7))),
              HasSubstr("one scale a block of [300, 6], found [7, 1]"));
  EXPECT_THAT(with(raw_tensor(DType::kF32, {3, 0}, counted_scales(0))), HasSubstr("found [3, 0]"));
  EXPECT_THAT(with(raw_tensor(DType::kF32, {0}, counted_scales(0))), HasSubstr("found [0]"));
  EXPECT_THAT(with(raw_tensor(DType::kF32, {}, counted_scales(1))), HasSubstr("found []"));
  EXPECT_THAT(with(raw_tensor(DType::kF32, {3, 1, 1}, counted_scales(3))),
              HasSubstr("found [3, 1, 1]"));
  EXPECT_THAT(with(raw_tensor(DType::kI32, {3, 1}, std::vector<std::int32_t>(3))),
              HasSubstr("expected F32, BF16, F16, U8 or F8_E8M0, found I32"));
}

TEST_F(Fp8Test, AVectorIsNoFp8Matrix) {
  tensors["model.norm.weight"] = raw_tensor(DType::kF8E4M3, {6}, std::vector<std::uint8_t>(6));
  tensors["model.norm.weight_scale_inv"] = raw_tensor(DType::kF32, {6}, counted_scales(6));
  EXPECT_THAT(refusal(), HasSubstr("a matrix, as it is F8_E4M3, found [6]"));
}

// --- Shards ---------------------------------------------------------------------------------------

class ShardedTest : public CheckpointTest {
 protected:
  void SetUp() override {
    write_file_atomically(folder.path() / "config.json", config.dump());
    RawTensors first, second;
    for (const auto& [name, tensor] : tensors) {
      const bool in_first = first.size() <= tensors.size() / 2;
      (in_first ? first : second)[name] = tensor;
      map[name] = in_first ? "a.safetensors" : "b.safetensors";
    }
    write_tensors(folder.path() / "a.safetensors", first);
    write_tensors(folder.path() / "b.safetensors", second);
  }
  Checkpoint open_sharded() {
    write_file_atomically(folder.path() / "model.safetensors.index.json",
                          json({{"weight_map", map}}).dump());
    return Checkpoint::open(folder.path());
  }
  std::string sharded_refusal() {
    return thrown<InputError>([&] { open_sharded(); });
  }

  json map = json::object();
};

TEST_F(ShardedTest, OpensAllShards) {
  const auto checkpoint = open_sharded();
  EXPECT_THAT(checkpoint.notices(), IsEmpty());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(floats_of(checkpoint, name), floats_of(tensor)) << name;
  }
}

TEST_F(ShardedTest, NamesMustStayInTheFolder) {
  for (const char* file : {"../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "",
                           "sub\\a.safetensors"}) {
    map["lm_head.weight"] = file;
    EXPECT_THAT(sharded_refusal(), HasSubstr("a file name in the same folder")) << file;
  }
  map["lm_head.weight"] = 3;
  EXPECT_THAT(sharded_refusal(), HasSubstr("a file name in the same folder, found 3"));
}

TEST_F(ShardedTest, AMissingShardOrTensorIsNamed) {
  map["lm_head.weight"] = "c.safetensors";
  EXPECT_THAT(sharded_refusal(), HasSubstr("c.safetensors: cannot open"));
  map["lm_head.weight"] = "b.safetensors";
  EXPECT_THAT(sharded_refusal(), HasSubstr("tensor \"lm_head.weight\", which the index places"));
}

TEST_F(ShardedTest, TensorsTheIndexLeavesOutAreNoticed) {
  RawTensors extra;
  extra["spare"] = counted_tensor({2}, 1);
  extra["lm_head.weight"] = tensors["lm_head.weight"];
  write_tensors(folder.path() / "c.safetensors", extra);
  map["lm_head.weight"] = "c.safetensors";
  const auto checkpoint = open_sharded();
  EXPECT_THAT(checkpoint.notices(),
              ElementsAre(HasSubstr("a.safetensors: 1 tensors"),
                          HasSubstr("c.safetensors: 1 tensors that model.safetensors.index.json "
                                    "does not name are ignored, the first is \"spare\"")));
}

TEST_F(ShardedTest, ABrokenIndexIsRefused) {
  const auto with = [&](const char* text) {
    folder.write("model.safetensors.index.json", text);
    return thrown<InputError>([&] { Checkpoint::open(folder.path()); });
  };
  EXPECT_THAT(with("{"), HasSubstr("index.json: not valid JSON"));
  EXPECT_THAT(with("[]"), HasSubstr("an object with a weight_map"));
  EXPECT_THAT(with("{\"weight_map\": []}"), HasSubstr("an object with a weight_map"));
  EXPECT_THAT(with("{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}"), HasSubstr("\"a\" twice"));
  EXPECT_THAT(with("{\"weight_map\": {}}"), HasSubstr("model.embed_tokens.weight"));
}

TEST_F(ShardedTest, AFolderWithoutWeightsIsRefused) {
  EXPECT_THAT(thrown<InputError>([&] { Checkpoint::open(folder.path()); }),
              HasSubstr("model.safetensors or model.safetensors.index.json, found neither"));
}

TEST_F(CheckpointTest, EveryTruncationOfTheWeightsIsRefused) {
  write_small_model(folder.path(), config, tensors);
  const auto file = read_file(folder.path() / "model.safetensors");
  for (std::size_t length = 0; length < file.size(); length += 1 + length / 16) {
    folder.write("model.safetensors", std::string_view(file).substr(0, length));
    EXPECT_NE(thrown<InputError>([&] { Checkpoint::open(folder.path()); }), "") << length;
  }
}

}  // namespace
}  // namespace indexcache
