// The schedule's dialects: one reading of them all, each engine's own, and writing them.
#include "indexcache/checkpoint/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "checkpoint/small_model.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/config.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::small_config;
using testing::thrown;

Pattern read(const json& config, int num_layers = 4) {
  return read_schedule(config, num_layers, "c");
}

std::string refusal(const json& config, int num_layers = 4) {
  return thrown<InputError>([&] { read(config, num_layers); });
}

TEST(ReadSchedule, EveryDialect) {
  const auto expected = Pattern::parse("FSFS", 4);
  EXPECT_EQ(read(json::object()), Pattern::full(4));
  EXPECT_EQ(read({{"indexer_types", {"full", "shared", "full", "shared"}}}), expected);
  EXPECT_EQ(read({{"index_topk_pattern", "FSFS"}}), expected);
  EXPECT_EQ(read({{"index_topk_pattern", {"F", "S", "F", "S"}}}), expected);
  EXPECT_EQ(read({{"index_topk_pattern", {"full", "shared", "full", "shared"}}}), expected);
  EXPECT_EQ(read({{"index_topk_freq", 2}, {"index_skip_topk_offset", 1}}), expected);
  EXPECT_EQ(read({{"index_topk_freq", 2}}), Pattern::parse("FFSF", 4));
  EXPECT_EQ(read({{"index_topk_freq", 2}, {"index_skip_topk_offset", nullptr}}),
            Pattern::parse("FFSF", 4));
  EXPECT_EQ(read({{"index_topk_freq", 1}, {"index_skip_topk_offset", 0}}), Pattern::full(4));
  EXPECT_EQ(read({{"index_skip_topk_offset", 3}}), Pattern::full(4));
  EXPECT_EQ(read({{"indexcache_sources", {-1, -1, 0, 1}}}), Pattern::parse("-1,-1,0,1", 4));
}

TEST(ReadSchedule, KeysThatAgreeMayStandTogether) {
  const json types = {"full", "full", "shared", "full"};
  EXPECT_EQ(
      read({{"indexer_types", types}, {"index_topk_pattern", "FFSF"}, {"index_topk_freq", 2}}),
      Pattern::parse("FFSF", 4));
  // A frequency of 1 is "off".
  EXPECT_EQ(read({{"index_topk_pattern", "FFSF"}, {"index_topk_freq", 1}}),
            Pattern::parse("FFSF", 4));
  // The nearest pattern beside a routed one is its fallback for engines.
  EXPECT_EQ(read({{"index_topk_pattern", "FFSS"}, {"indexcache_sources", {-1, -1, 0, 1}}}),
            Pattern::parse("-1,-1,0,1", 4));
}

TEST(ReadSchedule, ContradictionsShowBothReadings) {
  const auto types = refusal(
      {{"indexer_types", {"full", "shared", "full", "full"}}, {"index_topk_pattern", "FSSF"}});
  EXPECT_THAT(types, HasSubstr("indexer_types reads FSFF"));
  EXPECT_THAT(types, HasSubstr("index_topk_pattern reads FSSF"));
  const auto frequency = refusal({{"index_topk_pattern", "FSSF"}, {"index_topk_freq", 2}});
  EXPECT_THAT(frequency, HasSubstr("index_topk_freq 2 with offset 2 reads FFSF"));
  const auto sources =
      refusal({{"indexcache_sources", {-1, -1, 0, 1}}, {"index_topk_pattern", "FSSF"}});
  EXPECT_THAT(sources, HasSubstr("indexcache_sources reads -1,-1,0,1"));
  EXPECT_THAT(sources, HasSubstr("index_topk_pattern reads FSSF"));
}

TEST(ReadSchedule, Refusals) {
  EXPECT_THAT(refusal({{"index_topk_pattern", "FSS"}}), HasSubstr("4 letters F or S"));
  EXPECT_THAT(refusal({{"index_topk_pattern", "FSSFS"}}), HasSubstr("found 5"));
  EXPECT_THAT(refusal({{"index_topk_pattern", "SFFF"}}), HasSubstr("layer 0: expected Full"));
  EXPECT_THAT(refusal({{"index_topk_pattern", "FfFF"}}), HasSubstr("layer 1: expected F or S"));
  EXPECT_THAT(refusal({{"index_topk_pattern", 3}}), HasSubstr("a list of 4 strings"));
  EXPECT_THAT(refusal({{"indexer_types", {"full"}}}), HasSubstr("found 1 entries"));
  EXPECT_THAT(refusal({{"indexer_types", {"F", "S", "F", "S"}}}),
              HasSubstr("expected \"full\" or \"shared\", found \"F\""));
  EXPECT_THAT(refusal({{"indexer_types", {"shared", "full", "full", "full"}}}),
              HasSubstr("layer 0: expected Full, found Shared"));
  EXPECT_THAT(refusal({{"index_topk_freq", 0}}), HasSubstr("index_topk_freq: expected"));
  EXPECT_THAT(refusal({{"index_topk_freq", 2.0}}), HasSubstr("index_topk_freq: expected"));
  EXPECT_THAT(refusal({{"index_topk_freq", 2}, {"index_skip_topk_offset", 0}}),
              HasSubstr("index_skip_topk_offset: expected an integer from 1"));
  EXPECT_THAT(refusal({{"indexcache_sources", {-1, 0, 1, 0}}}), HasSubstr("indexcache_sources"));
  EXPECT_THAT(refusal({{"indexcache_sources", {-1, 0}}}), HasSubstr("4 sources"));
  EXPECT_THAT(refusal({{"indexcache_sources", {-1, 4294967295, 0, 0}}}),
              HasSubstr("source of layer 1"));
  EXPECT_THAT(refusal({{"indexcache_sources", "FSFS"}}), HasSubstr("a list of integers"));
}

// --- What the engines read (spec section 3.1) ----------------------------------------------------

std::map<std::string, ScheduleReading> readings(const json& config, int num_layers,
                                                Architecture architecture) {
  std::map<std::string, ScheduleReading> by_reader;
  for (auto& reading : read_schedule_as_engines_do(config, architecture, num_layers)) {
    by_reader[reading.reader] = reading;
  }
  return by_reader;
}

std::vector<int> full_layers(int first, int step, int last, std::vector<int> before) {
  for (int layer = first; layer <= last; layer += step) before.push_back(layer);
  return before;
}

TEST(EngineReadings, FrequencyFourOn78Layers) {
  // No offset: transformers and vLLM take 2; the trainer slime takes 0, which leaves layer 0 out.
  const auto without = readings({{"index_topk_freq", 4}}, 78, Architecture::kGlmMoeDsa);
  const auto usual = full_layers(5, 4, 77, {0, 1});
  ASSERT_EQ(usual.size(), 21u);
  for (const char* reader :
       {"transformers", "vLLM", "SGLang", "TensorRT-LLM", "ATOM", "the paper's patch"}) {
    ASSERT_TRUE(without.at(reader).pattern) << reader;
    EXPECT_EQ(without.at(reader).pattern->full_layers(), usual) << reader;
    EXPECT_EQ(without.at(reader).key, "index_topk_freq");
  }
  EXPECT_FALSE(without.at("slime").pattern);
  EXPECT_THAT(without.at("slime").remark, HasSubstr("layer 0"));
  EXPECT_EQ(without.at("llama.cpp").pattern, Pattern::full(78));

  // Offset 3, as GLM-5.2: the patch does not know it, ATOM counts from another layer.
  const json config = {{"index_topk_freq", 4}, {"index_skip_topk_offset", 3}};
  const auto with = readings(config, 78, Architecture::kGlmMoeDsa);
  const auto shifted = full_layers(2, 4, 74, {0, 1});
  for (const char* reader : {"transformers", "vLLM", "SGLang", "TensorRT-LLM", "slime"}) {
    EXPECT_EQ(with.at(reader).pattern->full_layers(), shifted) << reader;
  }
  EXPECT_EQ(with.at("the paper's patch").pattern->full_layers(), usual);
  EXPECT_EQ(with.at("ATOM").pattern->full_layers(), full_layers(7, 4, 75, {0, 1, 2, 3}));
}

TEST(EngineReadings, WorkedValues) {
  const auto count = [](int frequency, int layers) {
    return Pattern::every_nth(frequency, 2, layers).num_full();
  };
  EXPECT_EQ(count(4, 61), 16);
  EXPECT_EQ(count(4, 47), 13);
}

TEST(EngineReadings, Glm52IsReadAlikeByAllButThePatch) {
  const auto config = parse_config(
      json::parse(read_file(INDEXCACHE_SOURCE_DIR "/tests/golden/configs/glm_5_2_fp8.json")), "c");
  for (const auto& reading : read_schedule_as_engines_do(config)) {
    ASSERT_TRUE(reading.pattern) << reading.reader;
    EXPECT_EQ(*reading.pattern == config.schedule, reading.reader != "the paper's patch")
        << reading.reader;
  }
}

TEST(EngineReadings, PrecedenceAndListForms) {
  const json config = {{"indexer_types", {"full", "shared", "full", "shared"}},
                       {"index_topk_pattern", "FFSS"},
                       {"index_topk_freq", 2}};
  const auto by_reader = readings(config, 4, Architecture::kGlmMoeDsa);
  for (const char* reader : {"transformers", "ATOM", "llama.cpp"}) {
    EXPECT_EQ(by_reader.at(reader).pattern, Pattern::parse("FSFS", 4)) << reader;
  }
  for (const char* reader : {"vLLM", "SGLang", "TensorRT-LLM", "the paper's patch"}) {
    EXPECT_EQ(by_reader.at(reader).pattern, Pattern::parse("FFSS", 4)) << reader;
  }
  EXPECT_EQ(by_reader.at("slime").key, "index_topk_freq");
  const auto only_types =
      readings({{"indexer_types", {"full", "shared"}}}, 2, Architecture::kGlmMoeDsa);
  EXPECT_EQ(only_types.at("vLLM").pattern, Pattern::full(2));
  EXPECT_EQ(only_types.at("vLLM").remark, "does not read indexer_types");
  // A list: transformers takes its entries for indexer_types, the engines look for "S".
  const auto letters = readings({{"index_topk_pattern", {"F", "S"}}}, 2, Architecture::kGlmMoeDsa);
  EXPECT_EQ(letters.at("transformers").pattern, Pattern::full(2));
  EXPECT_EQ(letters.at("vLLM").pattern, Pattern::parse("FS", 2));
  const auto words =
      readings({{"index_topk_pattern", {"full", "shared"}}}, 2, Architecture::kGlmMoeDsa);
  EXPECT_EQ(words.at("transformers").pattern, Pattern::parse("FS", 2));
  EXPECT_EQ(words.at("vLLM").pattern, Pattern::full(2));
}

TEST(EngineReadings, ShortLongAndBrokenPatterns) {
  const auto too_short = readings({{"index_topk_pattern", "FS"}}, 4, Architecture::kGlmMoeDsa);
  EXPECT_EQ(too_short.at("vLLM").pattern, Pattern::parse("FSFF", 4));
  EXPECT_THAT(too_short.at("vLLM").remark, HasSubstr("past its 2 entries as Full"));
  EXPECT_FALSE(too_short.at("transformers").pattern);
  const auto too_long = readings({{"index_topk_pattern", "FSSFS"}}, 4, Architecture::kGlmMoeDsa);
  EXPECT_EQ(too_long.at("vLLM").pattern, Pattern::parse("FSSF", 4));
  const auto shared_first = readings({{"index_topk_pattern", "SF"}}, 2, Architecture::kGlmMoeDsa);
  EXPECT_FALSE(shared_first.at("vLLM").pattern);
  const auto number = readings({{"index_topk_pattern", 5}}, 2, Architecture::kGlmMoeDsa);
  EXPECT_FALSE(number.at("vLLM").pattern);
  EXPECT_FALSE(number.at("transformers").pattern);
  const auto null = readings({{"index_topk_freq", nullptr}}, 2, Architecture::kGlmMoeDsa);
  EXPECT_FALSE(null.at("transformers").pattern);
  for (const json& frequency : {json(0), json(-1), json("4"), json(1.5)}) {
    const auto broken = readings({{"index_topk_freq", frequency}}, 2, Architecture::kGlmMoeDsa);
    EXPECT_FALSE(broken.at("vLLM").pattern) << frequency;
    EXPECT_THAT(broken.at("vLLM").remark, HasSubstr("fails"));
  }
}

TEST(EngineReadings, DeepseekHasNoScheduleInTransformers) {
  const auto by_reader =
      readings({{"index_topk_pattern", "FS"}, {"indexer_types", {"full", "shared"}}}, 2,
               Architecture::kDeepseekV32);
  EXPECT_EQ(by_reader.at("transformers").pattern, Pattern::full(2));
  EXPECT_THAT(by_reader.at("transformers").remark, HasSubstr("knows no schedule"));
  EXPECT_EQ(by_reader.at("vLLM").pattern, Pattern::parse("FS", 2));
}

TEST(EngineReadings, OlderVllmNeedsASwitch) {
  json config = {{"index_topk_pattern", "FS"}};
  EXPECT_THAT(readings(config, 2, Architecture::kGlmMoeDsa).at("vLLM").remark,
              HasSubstr("use_index_cache"));
  config["use_index_cache"] = true;
  EXPECT_EQ(readings(config, 2, Architecture::kGlmMoeDsa).at("vLLM").remark, "");
}

TEST(EngineReadings, LlamaCppAssumesGlm52AtOneMillionTokens) {
  const auto by_reader =
      readings({{"max_position_embeddings", 1 << 20}}, 78, Architecture::kGlmMoeDsa);
  EXPECT_EQ(by_reader.at("llama.cpp").pattern, Pattern::every_nth(4, 3, 78));
  EXPECT_THAT(by_reader.at("llama.cpp").remark, HasSubstr("assumes"));
}

TEST(EngineReadings, NobodyElseKnowsRoutedSources) {
  for (const auto& reading : read_schedule_as_engines_do({{"indexcache_sources", {-1, -1, 0}}},
                                                         Architecture::kGlmMoeDsa, 3)) {
    EXPECT_THAT(reading.remark, HasSubstr("does not know indexcache_sources"));
    EXPECT_EQ(reading.pattern, Pattern::full(3));
  }
}

// --- Writing -----------------------------------------------------------------------------------

json config_with(const json& changes) {
  auto config = small_config();
  config.merge_patch(changes);
  return config;
}

TEST(SetSchedule, NearestPatternsReachEveryReader) {
  auto config = parse_config(
      config_with(
          {{"index_topk_pattern", nullptr}, {"index_topk_freq", 4}, {"index_skip_topk_offset", 3}}),
      "c");
  const auto schedule = Pattern::parse("FSF", 3);
  set_schedule(config, schedule);
  EXPECT_EQ(config.json["index_topk_pattern"], "FSF");
  EXPECT_EQ(config.json["indexer_types"], json({"full", "shared", "full"}));
  for (const char* key : {"index_topk_freq", "index_skip_topk_offset", "indexcache_sources"}) {
    EXPECT_FALSE(config.json.contains(key)) << key;
  }
  EXPECT_EQ(config.schedule, schedule);
  EXPECT_EQ(parse_config(config.json, "c").schedule, schedule);
  for (const auto& reading : read_schedule_as_engines_do(config)) {
    if (reading.reader == "slime") continue;  // reads index_topk_freq alone
    EXPECT_EQ(reading.pattern, schedule) << reading.reader;
  }
}

TEST(SetSchedule, RoutedPatternsLeaveNoOtherKey) {
  auto config = parse_config(config_with({{"indexer_types", {"full", "shared", "full"}}}), "c");
  const auto schedule = Pattern::from_sources({-1, -1, 0});
  set_schedule(config, schedule);
  EXPECT_EQ(config.json["indexcache_sources"], json({-1, -1, 0}));
  for (const char* key : {"index_topk_pattern", "indexer_types", "index_topk_freq"}) {
    EXPECT_FALSE(config.json.contains(key)) << key;
  }
  EXPECT_EQ(parse_config(config.json, "c").schedule, schedule);
  set_schedule(config, Pattern::parse("FSS", 3));
  EXPECT_FALSE(config.json.contains("indexcache_sources"));
  EXPECT_EQ(parse_config(config.json, "c").schedule, Pattern::parse("FSS", 3));
}

TEST(SetSchedule, DeepseekGetsNoIndexerTypes) {
  auto config = parse_config(
      config_with({{"model_type", "deepseek_v32"}, {"n_group", 1}, {"topk_group", 1}}), "c");
  set_schedule(config, Pattern::parse("FSS", 3));
  EXPECT_EQ(config.json["index_topk_pattern"], "FSS");
  EXPECT_FALSE(config.json.contains("indexer_types"));
}

}  // namespace
}  // namespace indexcache
