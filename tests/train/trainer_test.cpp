#include "indexcache/train/trainer.h"

#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/model/model.h"
#include "indexcache/train/training_state.h"
#include "support/thrown.h"
#include "train/trainer_fixture.h"

namespace indexcache {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::tiny_run_json;
using testing::tiny_stage;
using testing::tiny_text;
using testing::train_for;
using testing::TrainerTest;
using testing::untimed;

json three_stages() {
  auto config = tiny_run_json({tiny_stage("lm", 1e-2, 2560), tiny_stage("indexer", 1e-2, 1280),
                               tiny_stage("sparse", 1e-3, 2560)});
  config["stages"][2]["fp8_aware"] = true;
  return config;
}

TEST_F(TrainerTest, LearnsFarBelowTheUnigramEntropyInAllStages) {
  std::vector<json> stages = {tiny_stage("lm", 5e-3, 61'440, 64, 16),
                              tiny_stage("indexer", 1e-2, 15'360),
                              tiny_stage("sparse", 1e-3, 10'240)};
  stages[0]["warmup"] = 0.1;
  auto config = tiny_run_json(stages);
  config["data"]["retrieval_share"] = 0;
  train_quietly(run(config, "a"));
  const auto records = curves("a");
  double lm = 0, first_kl = 0, last_kl = 0, sparse = 0;
  for (const auto& record : records) {
    if (record["stage"] == "lm") lm = record["loss"];
    if (record["stage"] == "sparse") sparse = record["loss"];
    if (record["stage"] == "indexer") {
      const double kl = record.at("kl").at(1);
      if (first_kl == 0) first_kl = kl;
      last_kl = kl;
    }
  }
  EXPECT_LT(lm, 2.0);
  EXPECT_LT(sparse, 2.0);
  EXPECT_LT(last_kl, 0.7 * first_kl);
  EXPECT_EQ(records.back()["tokens"], 87'040);
  EXPECT_EQ(records.back()["expert_load"][0].size(), 4u);
}

TEST_F(TrainerTest, InterruptedAndResumedEndsWithTheSameBits) {
  auto config = three_stages();
  config["checkpoint_steps"] = 3;
  train_quietly(run(config, "whole"));
  // 10 + 5 + 10 steps: within a stage, at its end, in the next; before any checkpoint; twice.
  for (const int steps : {2, 10, 15, 24}) {
    const auto name = fmt::format("cut-{}", steps);
    train_for(run(config, name), steps, tokenizer_, text_);
    EXPECT_FALSE(std::filesystem::exists(folder_.path() / name / "model"));
    train_for(run(config, name, RunStart::kResume), 4, tokenizer_, text_);
    train_quietly(run(config, name, RunStart::kResume));
    EXPECT_TRUE(weights(name) == weights("whole")) << "interrupted after step " << steps;
    EXPECT_EQ(untimed(curves(name)), untimed(curves("whole")));
  }
}

TEST_F(TrainerTest, Fp8FolderLosesNothingOfAnFp8AwareRun) {
  auto config = three_stages();
  config["export"] = {{"dtype", "fp8"}};
  train_quietly(run(config, "fp8"));
  const auto checkpoint = Checkpoint::open(folder_.path() / "fp8" / "model");
  ASSERT_TRUE(checkpoint.config().quantization.has_value());
  EXPECT_EQ(checkpoint.view("model.layers.0.self_attn.q_a_proj.weight").dtype, DType::kF8E4M3);
  EXPECT_EQ(checkpoint.view("model.layers.1.mlp.experts.3.down_proj.weight").dtype, DType::kF8E4M3);
  for (const char* kept :
       {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.embed_tokens.weight",
        "lm_head.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.0.self_attn.indexer.weights_proj.weight"}) {
    EXPECT_EQ(checkpoint.view(kept).dtype, DType::kBF16) << kept;
  }
  EXPECT_EQ(checkpoint.view("model.layers.1.mlp.gate.e_score_correction_bias").dtype, DType::kF32);

  // The loss of the folder is the loss that the last steps reported.
  const auto model = Model::load(checkpoint, {});
  double sum = 0;
  constexpr int kWindows = 16, kContext = 64;
  for (int i = 0; i < kWindows; ++i) {
    const std::vector<std::int64_t> tokens(text_.tokens.begin() + i * kContext,
                                           text_.tokens.begin() + (i + 1) * kContext + 1);
    auto ids = at::empty({kContext + 1}, at::kLong);
    std::copy(tokens.begin(), tokens.end(), ids.mutable_data_ptr<std::int64_t>());
    auto cache = model.make_cache(Pattern::full(2), kContext);
    const auto hidden = model.forward(ids.narrow(0, 0, kContext), cache);
    sum += model.token_losses(hidden, ids.narrow(0, 1, kContext)).mean().item<double>();
  }
  EXPECT_NEAR(sum / kWindows, curves("fp8").back()["loss"].get<double>(), 0.3);
}

TEST_F(TrainerTest, ExpertsAreBalancedByTheirBias) {
  auto config = tiny_run_json({tiny_stage("lm", 1e-3, 20 * 256)});
  config["expert_bias_rate"] = 0.04;
  train_quietly(run(config, "balanced"));
  config["expert_bias_rate"] = 0;
  train_quietly(run(config, "free"));
  const auto worst = [&](const std::string& name) {
    double largest = 0;
    const auto record = curves(name).back();
    for (const double share : record["expert_load"][0]) largest = std::max(largest, share);
    return largest;
  };
  EXPECT_LT(worst("balanced"), 0.33);  // of four experts
  EXPECT_LT(worst("balanced"), worst("free"));
}

TEST_F(TrainerTest, DivergenceIsAnErrorAndKeepsTheLastGoodCheckpoint) {
  auto config = tiny_run_json({tiny_stage("lm", 1e18, 100 * 256)});
  config["checkpoint_steps"] = 1;
  config["log_steps"] = 1;
  const auto message = testing::thrown<InputError>([&] { train_quietly(run(config, "diverged")); });
  EXPECT_THAT(message, HasSubstr("diverged"));
  EXPECT_THAT(message, HasSubstr("learning rate"));
  const auto kept = folder_.path() / "diverged" / "checkpoint.safetensors";
  ASSERT_TRUE(std::filesystem::exists(kept));
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "diverged" / "model"));
}

TEST_F(TrainerTest, RunsAreNotMixedUp) {
  const auto config = tiny_run_json({tiny_stage("lm", 1e-2, 512)});
  train_quietly(run(config, "a"));
  EXPECT_THAT(testing::thrown<InputError>([&] { train_quietly(run(config, "a")); }),
              HasSubstr("--resume"));
  auto other = config;
  other["seed"] = 8;
  EXPECT_THAT(
      testing::thrown<InputError>([&] { train_quietly(run(other, "a", RunStart::kResume)); }),
      HasSubstr("same config"));
  const auto text = tiny_text(tokenizer_, 9'000);
  EXPECT_THAT(testing::thrown<InputError>([&] {
                train(run(config, "a", RunStart::kResume), tokenizer_, text,
                      [](const TrainingProgress&) {});
              }),
              HasSubstr("text of"));
  const auto file = folder_.path() / "a" / "checkpoint.safetensors";
  write_file_atomically(file, read_file(file).substr(0, 5000));
  EXPECT_THAT(
      testing::thrown<InputError>([&] { train_quietly(run(config, "a", RunStart::kResume)); }),
      HasSubstr("checkpoint.safetensors"));
}

TEST_F(TrainerTest, PlacesOutsideTheRunAreRefused) {
  const auto config = tiny_run_json({tiny_stage("lm", 1e-2, 512)});
  train_quietly(run(config, "a"));
  const auto file = folder_.path() / "a" / "checkpoint.safetensors";
  const auto good = load_training_state(file);
  const auto refused = [&](const std::function<void(RunPosition&)>& change) {
    auto state = good;
    change(state.position);
    save_training_state(file, state);
    return testing::thrown<InputError>([&] { train_quietly(run(config, "a", RunStart::kResume)); });
  };
  for (const int stage : {-1, 2, 1 << 30}) {
    EXPECT_THAT(refused([&](RunPosition& at) { at.stage = stage; }), HasSubstr("run's stages"));
  }
  EXPECT_THAT(refused([](RunPosition& at) { at.stage = 0, at.phase = 1; }),
              HasSubstr("run's stages"));
  EXPECT_THAT(refused([](RunPosition& at) { at.phase_step = -5; }), HasSubstr("run's stages"));
  EXPECT_THAT(refused([](RunPosition& at) { at.phase_used = -1; }), HasSubstr("run's stages"));
}

TEST_F(TrainerTest, WhatCannotBeWrittenIsRefusedBeforeAnyWork) {
  const auto config = tiny_run_json({tiny_stage("lm", 1e-2, 512)});
  folder_.write("file", "x");
  auto below_a_file = run(config, "a");
  below_a_file.folder = folder_.path() / "file" / "a";
  EXPECT_THAT(testing::thrown<InputError>([&] { check_run_folder(below_a_file); }),
              HasSubstr("cannot be made"));
  std::filesystem::create_directories(folder_.path() / "b" / "model" / "inner");
  EXPECT_THAT(testing::thrown<InputError>([&] { check_run_folder(run(config, "b")); }),
              HasSubstr("inner"));
  const auto held = run(config, "c");
  check_run_folder(held);
  const FolderLock lock(held.folder);
  EXPECT_THAT(testing::thrown<InputError>([&] { train_quietly(held); }),
              HasSubstr("another process"));
}

TEST_F(TrainerTest, PromptsThatDoNotFitAreRefusedBeforeAnyWork) {
  auto config = tiny_run_json({tiny_stage("lm", 1e-2, 512)});
  config["data"]["keys"] = {1, 40};  // 64 tokens of context
  EXPECT_THAT(testing::thrown<InputError>([&] { train_quietly(run(config, "a")); }),
              HasSubstr("64"));
}

TEST_F(TrainerTest, BudgetsInMinutesEndByTheClock) {
  auto stage = tiny_stage("lm", 1e-2, 1);
  stage["phases"][0].erase("tokens");
  stage["phases"][0]["minutes"] = 0.02;
  train_quietly(run(tiny_run_json({stage}), "clock"));
  const double seconds = curves("clock").back()["seconds"];
  EXPECT_GE(seconds, 1.2);
  EXPECT_TRUE(std::filesystem::exists(folder_.path() / "clock" / "model" / "config.json"));
}

}  // namespace
}  // namespace indexcache
