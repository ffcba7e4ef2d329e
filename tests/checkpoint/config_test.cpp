// config.json: the published models' values, the defaults of transformers' classes, and refusals.
#include "indexcache/checkpoint/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/small_model.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/strict_json.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::small_config;
using testing::TemporaryFolder;
using testing::thrown;

json published(const std::string& name) {
  return json::parse(
      read_file(fmt::format("{}/tests/golden/configs/{}.json", INDEXCACHE_SOURCE_DIR, name)));
}

TEST(PublishedConfigs, DeepseekV32) {
  const auto config = parse_config(published("deepseek_v3_2"), "config.json");
  EXPECT_EQ(config.architecture, Architecture::kDeepseekV32);
  EXPECT_EQ(config.num_layers, 61);
  EXPECT_EQ(config.num_mtp_layers, 1);
  EXPECT_EQ(config.hidden_size, 7168);
  EXPECT_EQ(config.num_heads, 128);
  EXPECT_EQ(config.q_lora_rank, 1536);
  EXPECT_EQ(config.kv_lora_rank, 512);
  EXPECT_EQ(config.qk_head_dim(), 192);
  EXPECT_EQ(config.v_head_dim, 128);
  EXPECT_EQ(config.index_num_heads, 64);
  EXPECT_EQ(config.index_head_dim, 128);
  EXPECT_EQ(config.index_topk, 2048);
  EXPECT_FALSE(config.indexer_rope_interleave);
  EXPECT_EQ(config.num_groups, 8);
  EXPECT_EQ(config.topk_groups, 4);
  EXPECT_EQ(config.mlp_kinds[2], MlpKind::kDense);
  EXPECT_EQ(config.mlp_kinds[3], MlpKind::kSparse);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope.theta, 10000);
  ASSERT_TRUE(config.rope.yarn);
  EXPECT_EQ(config.rope.yarn->factor, 40);
  EXPECT_EQ(config.rope.yarn->original_max_position_embeddings, 4096);
  EXPECT_EQ(config.rope.yarn->amplitude(), 1.0);
  EXPECT_NEAR(config.softmax_scale(), 0.1352337789, 1e-10);  // T7
  ASSERT_TRUE(config.quantization);
  EXPECT_TRUE(config.quantization->scale_is_power_of_two);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::int64_t>{1});
  EXPECT_EQ(config.schedule, Pattern::full(61));
}

TEST(PublishedConfigs, Glm5) {
  const auto config = parse_config(published("glm_5"), "config.json");
  EXPECT_EQ(config.architecture, Architecture::kGlmMoeDsa);
  EXPECT_EQ(config.num_layers, 78);
  EXPECT_EQ(config.num_heads, 64);
  EXPECT_EQ(config.softmax_scale(), 0.0625);
  EXPECT_EQ(config.rope.theta, 1e6);  // nested
  EXPECT_FALSE(config.rope.yarn);
  EXPECT_TRUE(config.indexer_rope_interleave);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_FALSE(config.quantization);
  EXPECT_FALSE(config.bos_token_id);
  EXPECT_EQ(config.pad_token_id, 154820);
  EXPECT_EQ(config.eos_token_ids, (std::vector<std::int64_t>{154820, 154827, 154829}));
  EXPECT_EQ(config.schedule, Pattern::full(78));
}

TEST(PublishedConfigs, Glm52) {
  const auto config = parse_config(published("glm_5_2_fp8"), "config.json");
  EXPECT_EQ(config.rope.theta, 8e6);
  EXPECT_EQ(config.max_position_embeddings, 1048576);
  std::vector<int> full_layers = {0, 1};
  for (int layer = 2; layer <= 74; layer += 4) full_layers.push_back(layer);
  EXPECT_EQ(config.schedule, Pattern::nearest(full_layers, 78));
  EXPECT_EQ(config.schedule.num_full(), 21);
  EXPECT_EQ(config.softmax_scale(), 0.0625);  // head_dim 192 in the file is not to be believed
  ASSERT_TRUE(config.quantization);
  EXPECT_FALSE(config.quantization->scale_is_power_of_two);
}

TEST(PublishedConfigs, Glm47FlashIsRefusedByName) {
  const auto message =
      thrown<InputError>([] { parse_config(published("glm_4_7_flash"), "config.json"); });
  EXPECT_THAT(message, HasSubstr("model_type"));
  EXPECT_THAT(message, HasSubstr("glm_moe_dsa (GLM-5, 5.1, 5.2, 5.3)"));
  EXPECT_THAT(message, HasSubstr("deepseek_v32 (DeepSeek-V3.2)"));
  EXPECT_THAT(message, HasSubstr("found \"glm4_moe_lite\""));
}

TEST(Config, OtherModelsAreRefusedByName) {
  for (const char* type : {"glm5_next", "deepseek_v3", "deepseek_v4", "llama", "GLM_MOE_DSA", ""}) {
    EXPECT_THAT(thrown<InputError>([&] {
                  parse_config({{"model_type", type}}, "config.json");
                }),
                HasSubstr(fmt::format("found {}", *type == 0 ? "none" : quote(type))));
  }
  EXPECT_THAT(thrown<InputError>([] { parse_config(json::object(), "config.json"); }),
              HasSubstr("model_type"));
}

// What transformers 5.17.0's GlmMoeDsaConfig() and DeepseekV32Config() hold.
TEST(Config, DefaultsAreThoseOfTransformers) {
  const auto glm = parse_config({{"model_type", "glm_moe_dsa"}}, "c");
  EXPECT_EQ(glm.vocab_size, 154880);
  EXPECT_EQ(glm.hidden_size, 6144);
  EXPECT_EQ(glm.intermediate_size, 12288);
  EXPECT_EQ(glm.moe_intermediate_size, 2048);
  EXPECT_EQ(glm.num_layers, 78);
  EXPECT_EQ(glm.num_heads, 64);
  EXPECT_EQ(glm.num_shared_experts, 1);
  EXPECT_EQ(glm.num_experts, 256);
  EXPECT_EQ(glm.num_experts_per_token, 8);
  EXPECT_EQ(glm.routed_scaling_factor, 2.5);
  EXPECT_EQ(glm.kv_lora_rank, 512);
  EXPECT_EQ(glm.q_lora_rank, 2048);
  EXPECT_EQ(glm.qk_rope_head_dim, 64);
  EXPECT_EQ(glm.qk_nope_head_dim, 192);
  EXPECT_EQ(glm.v_head_dim, 256);
  EXPECT_EQ(glm.num_groups, 1);
  EXPECT_EQ(glm.topk_groups, 1);
  EXPECT_TRUE(glm.norm_topk_prob);
  EXPECT_EQ(glm.max_position_embeddings, 202752);
  EXPECT_EQ(glm.rms_norm_eps, 1e-5);
  EXPECT_EQ(glm.index_num_heads, 32);
  EXPECT_EQ(glm.index_head_dim, 128);
  EXPECT_EQ(glm.index_topk, 2048);
  EXPECT_EQ(glm.mlp_kinds[2], MlpKind::kDense);
  EXPECT_EQ(glm.mlp_kinds[3], MlpKind::kSparse);
  EXPECT_FALSE(glm.tie_word_embeddings);
  EXPECT_EQ(glm.rope.theta, 10000);

  const auto deepseek = parse_config({{"model_type", "deepseek_v32"}}, "c");
  EXPECT_EQ(deepseek.vocab_size, 129280);
  EXPECT_EQ(deepseek.hidden_size, 7168);
  EXPECT_EQ(deepseek.intermediate_size, 18432);
  EXPECT_EQ(deepseek.num_layers, 61);
  EXPECT_EQ(deepseek.num_heads, 128);
  EXPECT_EQ(deepseek.q_lora_rank, 1536);
  EXPECT_EQ(deepseek.qk_nope_head_dim, 128);
  EXPECT_EQ(deepseek.v_head_dim, 128);
  EXPECT_EQ(deepseek.num_groups, 8);
  EXPECT_EQ(deepseek.topk_groups, 4);
  EXPECT_EQ(deepseek.max_position_embeddings, 163840);
  EXPECT_EQ(deepseek.rms_norm_eps, 1e-6);
  EXPECT_EQ(deepseek.index_num_heads, 64);
}

TEST(Config, NullIsAbsent) {
  auto config = small_config();
  for (const char* key : {"hidden_act", "index_topk_freq", "rope_scaling", "quantization_config",
                          "eos_token_id", "mlp_layer_types", "n_group"}) {
    config[key] = nullptr;
  }
  EXPECT_EQ(parse_config(config, "c").num_groups, 1);
}

TEST(Config, MlpLayerTypesWinOverFirstKDense) {
  auto config = small_config();
  config["mlp_layer_types"] = {"sparse", "dense", "sparse"};
  EXPECT_EQ(parse_config(config, "c").mlp_kinds,
            (std::vector{MlpKind::kSparse, MlpKind::kDense, MlpKind::kSparse}));
}

TEST(Config, AllRopeDialectsMeanTheSame) {
  const json yarn = {{"factor", 8},     {"original_max_position_embeddings", 8},
                     {"beta_fast", 32}, {"beta_slow", 1},
                     {"mscale", 1.0},   {"mscale_all_dim", 0.5}};
  auto nested = small_config();
  nested["rope_parameters"] = yarn;
  nested["rope_parameters"].update({{"rope_type", "yarn"}, {"rope_theta", 5e4}});
  auto old = small_config();
  old.erase("rope_parameters");
  old["rope_theta"] = 50000;
  old["rope_scaling"] = yarn;
  old["rope_scaling"]["type"] = "yarn";
  auto both = old;
  both["rope_parameters"] = nested["rope_parameters"];
  for (const auto& config : {nested, old, both}) {
    const auto rope = parse_config(config, "c").rope;
    EXPECT_EQ(rope.theta, 5e4);
    ASSERT_TRUE(rope.yarn);
    EXPECT_EQ(rope.yarn->factor, 8);
    EXPECT_EQ(rope.yarn->mscale_all_dim, 0.5);
    EXPECT_NEAR(rope.yarn->amplitude(), (0.1 * std::log(8.0) + 1) / (0.05 * std::log(8.0) + 1),
                1e-15);
  }
  both["rope_theta"] = 1e6;
  EXPECT_THAT(thrown<InputError>([&] { parse_config(both, "c"); }),
              HasSubstr("c: rope_parameters: rope_theta is 50000.0, but c: rope_theta is 1000000"));
}

TEST(Config, YarnWithoutMscaleHasTheAmplitudeOfTransformers) {
  auto config = small_config();
  config["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 4.0}, {"mscale", 0.3}};
  const auto parsed = parse_config(config, "c");
  EXPECT_EQ(parsed.rope.yarn->original_max_position_embeddings, 64);  // max_position_embeddings
  EXPECT_NEAR(parsed.rope.yarn->amplitude(), 0.1 * std::log(4.0) + 1, 1e-15);
  EXPECT_NEAR(parsed.softmax_scale(), 1 / std::sqrt(5.0), 1e-15);
}

struct Refusal {
  const char* name;
  json changes;  // merged into the small config; null removes a key
  const char* message;
};

class RefusedConfig : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusedConfig, NamesKeyExpectedAndFound) {
  auto config = small_config();
  config.merge_patch(GetParam().changes);
  const auto message = thrown<InputError>([&] { parse_config(config, "model/config.json"); });
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_THAT(message, HasSubstr("model/config.json"));
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    All, RefusedConfig,
    ::testing::Values(
        Refusal{"Zero", {{"hidden_size", 0}}, "hidden_size: expected an integer from 1"},
        Refusal{"Negative", {{"index_topk", -3}}, "index_topk: expected an integer from 1"},
        Refusal{"Fraction", {{"vocab_size", 10.5}}, "found 10.5"},
        Refusal{"WholeFloat", {{"vocab_size", 10.0}}, "found 10.0"},
        Refusal{"Text", {{"num_attention_heads", "5"}}, "found \"5\""},
        Refusal{"Huge", {{"num_hidden_layers", 1000000000}}, "from 1 to 4096"},
        Refusal{"PastInt64", {{"hidden_size", 18446744073709551615u}}, "hidden_size: expected"},
        Refusal{"List", {{"q_lora_rank", {1, 2}}}, "found [1,2]"},
        Refusal{"OddRope", {{"qk_rope_head_dim", 3}}, "an even number, found 3"},
        Refusal{"IndexHeadBelowRope",
                {{"qk_rope_head_dim", 6}},
                "index_head_dim: expected at least qk_rope_head_dim, 6, found 4"},
        Refusal{"QkHeadDim", {{"qk_head_dim", 7}}, "qk_head_dim: expected 5 (qk_nope_head_dim +"},
        Refusal{"KeyValueHeads", {{"num_key_value_heads", 1}}, "expected 3 (num_attention_heads)"},
        Refusal{"Activation", {{"hidden_act", "gelu"}}, "expected \"silu\", found \"gelu\""},
        Refusal{"Scoring", {{"scoring_func", "softmax"}}, "expected \"sigmoid\""},
        Refusal{"TopkMethod", {{"topk_method", "greedy"}}, "expected \"noaux_tc\""},
        Refusal{"Bias", {{"attention_bias", true}}, "attention_bias: expected false, found true"},
        Refusal{"BiasText", {{"mlp_bias", "no"}}, "mlp_bias: expected true or false"},
        Refusal{"RopeStyle", {{"rope_interleave", false}}, "rope_interleave: expected true"},
        Refusal{"PooledKeys", {{"index_kpool", 4}}, "pooled index keys are not supported"},
        Refusal{"MoeFrequency", {{"moe_layer_freq", 2}}, "moe_layer_freq: expected 1, found 2"},
        Refusal{"LayerTypes",
                {{"layer_types", {"linear_attention", "x", "y"}}},
                "found \"linear_attention\""},
        Refusal{"LayerTypesLength", {{"layer_types", {"x"}}}, "3 strings, one a layer, found 1"},
        Refusal{"MlpTypesLength", {{"mlp_layer_types", {"dense"}}}, "found 1 entries"},
        Refusal{"MlpTypesWord",
                {{"mlp_layer_types", {"dense", "moe", "dense"}}},
                "mlp_layer_types: layer 1: expected \"dense\" or \"sparse\", found \"moe\""},
        Refusal{"Groups", {{"n_group", 3}}, "groups of equal size"},
        Refusal{"GroupsOfOne", {{"n_group", 4}, {"topk_group", 2}}, "two experts or more"},
        Refusal{"TopkGroups", {{"n_group", 2}, {"topk_group", 3}}, "topk_group: expected"},
        Refusal{"ExpertsPerToken", {{"num_experts_per_tok", 5}}, "from 1 to 4, found 5"},
        Refusal{"ExpertsPerTokenOfGroups",
                {{"n_group", 2}, {"topk_group", 1}, {"num_experts_per_tok", 3}},
                "from 1 to 2, found 3"},
        Refusal{
            "DefaultsDoNotFit", {{"num_experts_per_tok", nullptr}}, "found none, which means 8"},
        Refusal{
            "ExpertAliases", {{"num_experts", 8}}, "expected 4 as in n_routed_experts, found 8"},
        Refusal{"ScalingNegative", {{"routed_scaling_factor", -1.0}}, "a positive number"},
        Refusal{"EpsZero", {{"rms_norm_eps", 0}}, "a positive number"},
        Refusal{"RopeType",
                {{"rope_parameters", {{"rope_type", "llama3"}}}},
                "rope_type: expected \"default\" or \"yarn\", found \"llama3\""},
        Refusal{"ThetaOne", {{"rope_parameters", {{"rope_theta", 1}}}}, "more than 1"},
        Refusal{"ThetaText", {{"rope_parameters", {{"rope_theta", "1e6"}}}}, "a finite number"},
        Refusal{"RopeIsAList", {{"rope_parameters", {1}}}, "expected an object"},
        Refusal{"PartialRotary",
                {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}},
                "partial_rotary_factor: expected 1"},
        Refusal{"YarnFactor",
                {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 0.5}}}},
                "factor: expected 1 or more"},
        Refusal{"YarnBetas",
                {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 2}, {"beta_fast", 0.5}}}},
                "at least beta_slow"},
        Refusal{
            "YarnOriginalZero",
            {{"rope_parameters", {{"rope_type", "yarn"}, {"original_max_position_embeddings", 0}}}},
            "original_max_position_embeddings: expected 1 or more"},
        Refusal{
            "YarnAttentionFactor",
            {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 2}, {"attention_factor", 3}}}},
            "attention_factor"},
        Refusal{"YarnTruncate",
                {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 2}, {"truncate", false}}}},
                "truncate: expected true"},
        Refusal{"QuantMethod",
                {{"quantization_config", {{"quant_method", "awq"}}}},
                "quant_method: expected \"fp8\" (E4M3 with block scales), found \"awq\""},
        Refusal{"QuantFormat",
                {{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e5m2"}}}},
                "expected \"e4m3\""},
        Refusal{"QuantBlocks",
                {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {0, 1}}}}},
                "two positive integers"},
        Refusal{"QuantScaleFormat",
                {{"quantization_config", {{"quant_method", "fp8"}, {"scale_fmt", "mx"}}}},
                "scale_fmt"},
        Refusal{"EosNegative", {{"eos_token_id", {3, -1}}}, "token ids of 0 or more, found -1"},
        Refusal{"EosText", {{"eos_token_id", "</s>"}}, "eos_token_id: expected an integer"},
        Refusal{"MtpNegative", {{"num_nextn_predict_layers", -1}}, "from 0"}),
    [](const auto& info) { return info.param.name; });

TEST(ReadConfig, RefusesWhatIsNoStrictJson) {
  TemporaryFolder folder;
  const auto refusal = [&](std::string_view text) {
    folder.write("config.json", text);
    return thrown<InputError>([&] { read_config(folder.path()); });
  };
  EXPECT_THAT(refusal("{\"model_type\": \"glm_moe_dsa\", \"rms_norm_eps\": NaN}"),
              HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"rms_norm_eps\": 1e999}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"a\": 1, \"a\": 1}"), HasSubstr("every key once, found \"a\" twice"));
  EXPECT_THAT(refusal("{\"b\": [{\"a\": 1, \"a\": 1}]}"), HasSubstr("\"a\" twice"));
  EXPECT_THAT(refusal("{\"a\": \"\xc3\"}"), HasSubstr("not valid JSON"));
  // Text of the file stays one printable line, and a short one.
  EXPECT_THAT(refusal("{\"a\\nb\": 1, \"a\\nb\": 1}"), HasSubstr("found \"a\\x0ab\" twice"));
  EXPECT_THAT(refusal("{\"a\": \"\x7f\u009b\n\"}"), HasSubstr("last read: \"\\\"\\x7f\\xc2\\x9b"));
  EXPECT_THAT(refusal("{\"a\" nulx}"), HasSubstr("last read: \"\\\"a\\\" nulx\"; expected ':'"));
  EXPECT_LT(refusal("{\"" + std::string(100000, 'a') + "\n\": 1}").size(), 500u);
  EXPECT_LT(refusal("{\"a\": 1e" + std::string(100000, '9') + "}").size(), 500u);
  EXPECT_THAT(refusal("{\"a\": 1} x"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal(std::string_view("{}\0", 3)), HasSubstr("NUL byte at offset 2"));
  EXPECT_THAT(refusal(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("expected a JSON object, found []"));
  EXPECT_THAT(refusal(std::string(1000000, '[')), HasSubstr("at most 64 levels"));
  for (const auto& message : {refusal("{"), refusal("\n\n{\n}}")}) {
    EXPECT_THAT(message, HasSubstr("config.json"));
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(ReadConfig, AFolderWithoutOneIsRefused) {
  TemporaryFolder folder;
  EXPECT_THAT(thrown<InputError>([&] { read_config(folder.path()); }),
              HasSubstr("a model folder with a config.json, found none"));
  EXPECT_THAT(thrown<InputError>([&] { read_config(folder.path() / "none"); }),
              HasSubstr("a model folder with a config.json, found none"));
}

}  // namespace
}  // namespace indexcache
