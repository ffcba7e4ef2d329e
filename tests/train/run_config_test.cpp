#include "indexcache/train/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "indexcache/base/error.h"
#include "support/thrown.h"
#include "train/tiny_run.h"

namespace indexcache {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::thrown;
using testing::tiny_run_json;
using testing::tiny_stage;

std::string error_of(const json& config) {
  return thrown<InputError>([&] { parse_run_config(config, "run.json"); });
}

TEST(RunConfig, ReadsStagesPhasesAndDefaults) {
  auto stage = tiny_stage("sparse", 1e-3, 1000);
  stage["indexer_learning_rate"] = 2e-3;
  stage["fp8_aware"] = true;
  const auto config = parse_run_config(tiny_run_json({tiny_stage("lm", 1e-2, 500), stage}), "x");
  ASSERT_EQ(config.stages.size(), 2u);
  EXPECT_EQ(config.stages[0].kind, StageKind::kLanguageModel);
  EXPECT_EQ(config.stages[0].indexer_peak, 1e-2);
  EXPECT_EQ(config.stages[1].fp8, Fp8Training::kFakeQuantized);
  EXPECT_EQ(config.stages[1].indexer_peak, 2e-3);
  EXPECT_EQ(config.stages[1].budget(), 1000);
  EXPECT_EQ(config.optimizer.beta2, 0.95);
  EXPECT_EQ(config.optimizer.weight_decay, 0.1);
  EXPECT_EQ(config.model.num_layers, 2);
}

TEST(RunConfig, ErrorsNameTheKey) {
  auto config = tiny_run_json({tiny_stage("lm", 1e-2, 500)});
  config["sead"] = 1;
  EXPECT_THAT(error_of(config), AllOf(HasSubstr("run.json"), HasSubstr("sead")));

  config = tiny_run_json({tiny_stage("dense", 1e-2, 500)});
  EXPECT_THAT(error_of(config), AllOf(HasSubstr("stages[0]: kind"), HasSubstr("\"dense\"")));

  config = tiny_run_json({tiny_stage("lm", -1, 500)});
  EXPECT_THAT(error_of(config), AllOf(HasSubstr("learning_rate"), HasSubstr("-1")));

  config = tiny_run_json({tiny_stage("lm", 1e-2, 500)});
  config["stages"][0]["phases"][0]["minutes"] = 1;
  EXPECT_THAT(error_of(config), AllOf(HasSubstr("phases[0]"), HasSubstr("both")));
  config["stages"][0]["phases"][0].erase("tokens");
  config["stages"][0]["phases"].push_back({{"context", 64}, {"sequences", 1}, {"tokens", 9}});
  EXPECT_THAT(error_of(config), HasSubstr("same unit"));

  config = tiny_run_json({tiny_stage("lm", 1e-2, 500, 4096)});
  EXPECT_THAT(error_of(config), AllOf(HasSubstr("max_position_embeddings"), HasSubstr("4096")));

  config = tiny_run_json({});
  EXPECT_THAT(error_of(config), HasSubstr("stages"));
  EXPECT_THAT(error_of(json::array()), HasSubstr("an object"));
}

TEST(RunConfig, Fp8FoldersNeedWholeBlocks) {
  auto config = tiny_run_json({tiny_stage("lm", 1e-2, 500)});
  config["export"] = {{"dtype", "fp8"}};
  EXPECT_NO_THROW(parse_run_config(config, "x"));
  config["model"]["moe_intermediate_size"] = 96;
  EXPECT_THAT(error_of(config), AllOf(HasSubstr("moe_intermediate_size"), HasSubstr("96")));
}

TEST(RunConfig, ModelsThatCannotBeTrainedAreRefused) {
  auto config = tiny_run_json({tiny_stage("lm", 1e-2, 500)});
  config["model"]["tie_word_embeddings"] = true;
  EXPECT_THAT(error_of(config), HasSubstr("tie_word_embeddings"));
}

TEST(RunConfig, NumbersBeyondUseAreRefused) {
  const auto with = [](const char* pointer, const json& value) {
    auto config = tiny_run_json({tiny_stage("lm", 1e-2, 500)});
    config[json::json_pointer(pointer)] = value;
    return config;
  };
  for (const json& keys : {json(5), json::array(), json{0}, json{1LL << 33}, json{"2"}}) {
    EXPECT_THAT(error_of(with("/data/keys", keys)), HasSubstr("keys: expected a list")) << keys;
  }
  EXPECT_THAT(error_of(with("/stages/0/phases/0/sequences", 1LL << 40)), HasSubstr("sequences"));
  EXPECT_THAT(error_of(with("/seed", 18'000'000'000'000'000'000ULL)), HasSubstr("seed"));
  EXPECT_THAT(error_of(with("/export/shard_megabytes", 1LL << 40)), HasSubstr("shard_megabytes"));
}

TEST(RunConfig, PatternIsTheModelsScheduleUnlessStated) {
  auto config = tiny_run_json({tiny_stage("lm", 1e-2, 500)});
  EXPECT_EQ(parse_run_config(config, "x").pattern, Pattern::full(2));
  config["model"]["indexer_types"] = {"full", "shared"};
  EXPECT_EQ(parse_run_config(config, "x").pattern, Pattern::parse("FS", 2));
  config["pattern"] = "FF";
  EXPECT_EQ(parse_run_config(config, "x").pattern, Pattern::full(2));
  config["pattern"] = "FSS";
  EXPECT_THAT(error_of(config), HasSubstr("2"));
  config["pattern"] = 3;
  EXPECT_THAT(error_of(config), HasSubstr("pattern"));
}

// What `indexcache distill` makes of the file for the bundled model.
TEST(RunConfig, BundledDistillConfigIsValid) {
  const auto models = std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "models";
  auto distill = read_json_file(models / "distill.json");
  EXPECT_THAT(error_of(distill), HasSubstr("model"));
  distill["model"] = read_json_file(models / "small-dsa.json").at("model");
  distill["pattern"] = "uniform:1/4";
  distill["export"]["dtype"] = "fp8";
  const auto config = parse_run_config(distill, "distill.json");
  EXPECT_EQ(config.index_loss, IndexLoss::kMulti);
  EXPECT_EQ(config.pattern, Pattern::uniform(4, config.model.num_layers));
  ASSERT_EQ(config.stages.size(), 2u);
  EXPECT_EQ(config.stages[0].kind, StageKind::kIndexerWarmup);
  EXPECT_EQ(config.stages[1].kind, StageKind::kSparse);
}

TEST(RunConfig, BundledConfigsAreValid) {
  for (const char* name : {"small-dsa.json", "tiny-dsa.json"}) {
    const auto config =
        read_run_config(std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "models" / name);
    EXPECT_EQ(config.model.kv_lora_rank, 512) << name;
    EXPECT_EQ(config.model.qk_rope_head_dim, 64) << name;
    EXPECT_EQ(config.model.index_head_dim, 128) << name;
    EXPECT_GE(config.model.index_num_heads, 8) << name;
    EXPECT_GE(config.model.num_layers, 16) << name;
    EXPECT_EQ(config.export_dtype, ExportDType::kFp8) << name;
    EXPECT_EQ(config.stages.back().fp8, Fp8Training::kFakeQuantized) << name;
    EXPECT_LE(16 * config.model.index_topk, config.model.max_position_embeddings) << name;
  }
}

TEST(RunConfig, MinutesScaleTheBudgetsInMinutes) {
  auto stage = tiny_stage("lm", 1e-2, 500);
  stage["phases"] = {{{"context", 64}, {"sequences", 1}, {"minutes", 3}},
                     {{"context", 32}, {"sequences", 1}, {"minutes", 1}}};
  auto config = parse_run_config(tiny_run_json({stage, tiny_stage("sparse", 1e-3, 900)}), "x");
  scale_to_minutes(config, 1);
  EXPECT_DOUBLE_EQ(config.stages[0].phases[0].budget, 45);
  EXPECT_DOUBLE_EQ(config.stages[0].phases[1].budget, 15);
  EXPECT_DOUBLE_EQ(config.stages[1].phases[0].budget, 900);
  EXPECT_THAT(thrown<InputError>([&] { scale_to_minutes(config, 0); }), HasSubstr("--minutes"));
}

TEST(RateSchedule, WarmsUpStaysAndComesDown) {
  RateSchedule schedule{.peak = 1, .warmup = 0.1, .flat = 0.4, .final = 0.2};
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 0), 0);
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 0.05), 0.5);
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 0.1), 1);
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 0.4), 1);
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 0.7), 0.6);
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 1), 0.2);
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 2), 0.2);
  schedule.decay = Decay::kLinear;
  EXPECT_DOUBLE_EQ(rate_factor(schedule, 0.55), 0.8);
}

}  // namespace
}  // namespace indexcache
