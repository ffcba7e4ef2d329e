// Training that starts from a checkpoint, for a pattern.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/model/model.h"
#include "indexcache/train/trainer.h"
#include "support/thrown.h"
#include "train/trainer_fixture.h"

namespace indexcache {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::tiny_four_layers;
using testing::tiny_run_json;
using testing::tiny_stage;
using testing::train_for;
using testing::untimed;

class DistillTest : public testing::TrainerTest {
 protected:
  void SetUp() override {
    auto config = tiny_four_layers(
        tiny_run_json({tiny_stage("lm", 1e-2, 2560), tiny_stage("indexer", 1e-2, 1280)}));
    train_quietly(run(config, "start"));
  }

  Checkpoint model(const std::string& name) const {
    return Checkpoint::open(folder_.path() / name / "model");
  }
  static json config(const std::string& pattern, const std::vector<json>& stages) {
    auto config = tiny_four_layers(tiny_run_json(stages));
    config["pattern"] = pattern;
    return config;
  }
  static json two_stages(const std::string& pattern, const std::string& second) {
    return config(pattern, {tiny_stage("indexer", 1e-2, 1280), tiny_stage(second, 1e-3, 1280)});
  }
  // Runs it from the model of the run `from`.
  void distill(const json& config, const std::string& name, const std::string& from = "start",
               RunStart start = RunStart::kNew, int steps = 1'000'000) const {
    const auto checkpoint = model(from);
    auto distilling = run(config, name, start);
    distilling.weights = &checkpoint;
    train_for(distilling, steps, tokenizer_, text_);
  }
};

bool is_indexer_of(const std::string& name, int layer) {
  return name.find(fmt::format("layers.{}.self_attn.indexer.", layer)) != std::string::npos;
}

// Names of the tensors that differ, stored bit by stored bit.
std::set<std::string> changed(const Checkpoint& before, const Checkpoint& after) {
  std::set<std::string> names;
  EXPECT_EQ(before.names(), after.names());
  for (const auto& name : before.names()) {
    const auto a = before.view(name).bytes, b = after.view(name).bytes;
    if (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size()) != 0) names.insert(name);
  }
  return names;
}

TEST_F(DistillTest, IndexerOnlyMovesTheKeptIndexersAlone) {
  distill(two_stages("FSFS", "sparse-indexer"), "a");
  const auto names = changed(model("start"), model("a"));
  EXPECT_FALSE(names.empty());
  for (const auto& name : names) {
    EXPECT_TRUE(is_indexer_of(name, 0) || is_indexer_of(name, 2)) << name;
  }
}

TEST_F(DistillTest, JointStageMovesTheModelTooButNoUnusedIndexer) {
  distill(two_stages("FSFS", "sparse"), "a");
  const auto names = changed(model("start"), model("a"));
  EXPECT_TRUE(names.contains("model.layers.1.self_attn.q_b_proj.weight"));
  EXPECT_TRUE(names.contains("lm_head.weight"));
  for (const auto& name : names) {
    EXPECT_FALSE(is_indexer_of(name, 1) || is_indexer_of(name, 3)) << name;
  }
}

// The cross-layer loss of the kept indexers falls, and further than DSA's own loss brings it.
TEST_F(DistillTest, CrossLayerLossTeachesTheIndexerItsReaders) {
  const auto last_kl = [&](const char* loss, const char* name, const char* measured) {
    auto teach = config("FSSS", {tiny_stage("indexer", 1e-2, 12'800)});
    teach["index_loss"] = loss;
    distill(teach, name);
    // Measured alike: L_multi of a run whose steps are too small to move anything.
    distill(config("FSSS", {tiny_stage("indexer", 1e-12, 1280)}), measured, name);
    return curves(measured).back()["kl"][0].get<double>();
  };
  distill(config("FSSS", {tiny_stage("indexer", 1e-12, 1280)}), "before");
  const double before = curves("before").back()["kl"][0];
  const double own = last_kl("own", "own", "own-measured");
  const double multi = last_kl("multi", "multi", "multi-measured");
  const double average = last_kl("average", "average", "average-measured");
  EXPECT_LT(multi, 0.9 * before);
  EXPECT_LT(multi, own);
  EXPECT_NEAR(average, multi, 0.02 * multi);
}

TEST_F(DistillTest, ResultSaysItsSchedule) {
  distill(config("FSFS", {tiny_stage("indexer", 1e-2, 256)}), "nearest");
  const auto nearest = model("nearest").config().json;
  EXPECT_EQ(nearest["index_topk_pattern"], "FSFS");
  EXPECT_EQ(nearest["indexer_types"], json({"full", "shared", "full", "shared"}));
  EXPECT_FALSE(nearest.contains("indexcache_sources"));
  EXPECT_EQ(model("nearest").config().schedule, Pattern::parse("FSFS", 4));

  const auto routed = Pattern::parse("-1,-1,0,1", 4);
  auto run = config("-1,-1,0,1", {tiny_stage("indexer", 1e-2, 256)});
  distill(run, "routed");
  const auto alone = model("routed").config();
  EXPECT_EQ(alone.schedule, routed);
  EXPECT_FALSE(alone.json.contains("index_topk_pattern"));
  EXPECT_FALSE(alone.json.contains("indexer_types"));

  run["export"]["nearest_keys"] = true;
  distill(run, "both");
  const auto both = model("both").config();
  EXPECT_EQ(both.schedule, routed);
  EXPECT_EQ(both.json["index_topk_pattern"], "FFSS");
}

TEST_F(DistillTest, UnusedIndexersAreDroppedOnRequestAndMissedAfterwards) {
  auto run = config("FSFS", {tiny_stage("indexer", 1e-2, 256)});
  run["export"]["unused_indexers"] = "drop";
  distill(run, "dropped");
  const auto checkpoint = model("dropped");
  EXPECT_TRUE(checkpoint.has_indexer(0));
  EXPECT_FALSE(checkpoint.has_indexer(1));
  for (const auto& name : checkpoint.names()) {
    EXPECT_FALSE(is_indexer_of(name, 1) || is_indexer_of(name, 3)) << name;
  }
  EXPECT_EQ(Model::load(checkpoint, {}).baseline(), Pattern::parse("FSFS", 4));
  // It can be distilled on for fewer Full layers, not for the ones it lacks.
  distill(config("FSSS", {tiny_stage("indexer", 1e-2, 256)}), "fewer", "dropped");
  const auto message = testing::thrown<InputError>(
      [&] { distill(config("FFFS", {tiny_stage("indexer", 1e-2, 256)}), "more", "dropped"); });
  EXPECT_THAT(message, HasSubstr("none in layer 1"));
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "more" / "model"));
}

TEST_F(DistillTest, InterruptedAndResumedEndsWithTheSameBits) {
  auto config = two_stages("-1,-1,0,1", "sparse");
  config["index_loss"] = "average";
  config["checkpoint_steps"] = 2;
  distill(config, "whole");
  for (const int steps : {3, 5, 8}) {
    const auto name = fmt::format("cut-{}", steps);
    distill(config, name, "start", RunStart::kNew, steps);
    EXPECT_FALSE(std::filesystem::exists(folder_.path() / name / "model"));
    distill(config, name, "start", RunStart::kResume);
    EXPECT_TRUE(weights(name) == weights("whole")) << steps;
    EXPECT_EQ(untimed(curves(name)), untimed(curves("whole")));
  }
  config["weights"] = "others";
  EXPECT_THAT(
      testing::thrown<InputError>([&] { distill(config, "cut-3", "start", RunStart::kResume); }),
      HasSubstr("same config"));
}

}  // namespace
}  // namespace indexcache
