#include "indexcache/eval/speed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "indexcache/base/error.h"
#include "support/random_model.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::thrown;

class SpeedTest : public ::testing::Test {
 protected:
  const testing::TemporaryFolder folder_;
  const Model model_ = testing::random_model(folder_.path(), 300);
  const std::vector<std::int32_t> tokens_ = {1, 2, 3, 250, 17, 99, 4};
  const std::vector<NamedPattern> patterns_ = {{"baseline", Pattern::full(4)},
                                               {"half", Pattern::parse("FSFS", 4)}};
  const SpeedOptions options_{.contexts = {64, 96}, .decode_tokens = 3, .repeats = 2, .chunk = 32};
};

TEST_F(SpeedTest, EveryContextOfEveryPatternIsMeasuredInEveryRepeat) {
  std::int64_t done = 0, total = 0;
  const auto speeds =
      measure_speed(model_, patterns_, tokens_, options_, [&](std::int64_t d, std::int64_t t) {
        EXPECT_GT(d, done);
        done = d;
        total = t;
      });
  EXPECT_EQ(done, total);
  EXPECT_EQ(total, 2 * 2 * (96 + 2 * 4));
  ASSERT_EQ(speeds.size(), 2u);
  for (const auto& speed : speeds) {
    ASSERT_EQ(speed.points.size(), 2u);
    for (const auto& point : speed.points) {
      EXPECT_EQ(point.prefill.size(), 2u);
      EXPECT_EQ(point.decode.size(), 2u);
      for (const double seconds : point.prefill) EXPECT_GT(seconds, 0);
      for (const double seconds : point.decode) EXPECT_GT(seconds, 0);
      // The parts are the whole: means over the repeats.
      double parts = 0;
      for (const auto& [name, seconds] : point.prefill_parts) parts += seconds;
      EXPECT_NEAR(parts, (point.prefill[0] + point.prefill[1]) / 2, 1e-9);
      parts = 0;
      for (const auto& [name, seconds] : point.decode_parts) parts += seconds;
      EXPECT_NEAR(parts, (point.decode[0] + point.decode[1]) / 2, 1e-9);
      for (const auto* name : {"indexer", "sparse_mla", "projections", "moe", "mlp", "other"}) {
        EXPECT_TRUE(point.prefill_parts.contains(name)) << name;
      }
    }
    // A longer context's prefill holds the shorter one's.
    for (int repeat = 0; repeat < 2; ++repeat) {
      EXPECT_GT(speed.points[1].prefill[repeat], speed.points[0].prefill[repeat]);
    }
  }
}

TEST_F(SpeedTest, CachesAreWhatASequenceCacheTakes) {
  const auto speeds = measure_speed(model_, patterns_, tokens_, options_);
  for (const auto& speed : speeds) {
    for (const auto& point : speed.points) {
      EXPECT_EQ(point.cache.total(), model_.make_cache(speed.pattern, point.context).bytes());
    }
  }
  EXPECT_EQ(speeds[0].points[0].cache.index_keys, 2 * speeds[1].points[0].cache.index_keys);
  EXPECT_EQ(speeds[0].points[0].cache.latents, speeds[1].points[0].cache.latents);
}

TEST_F(SpeedTest, TheReportStatesMedianRangeAndSpeedUp) {
  std::vector<PatternSpeed> speeds = measure_speed(model_, patterns_, tokens_, options_);
  speeds[0].points[0].prefill = {4, 10, 6};
  speeds[1].points[0].prefill = {2, 2, 1};
  const auto json = speed_json(speeds);
  const auto& base = json[0]["contexts"][0]["prefill"];
  EXPECT_EQ(base["seconds"]["median"], 6);
  EXPECT_EQ(base["seconds"]["min"], 4);
  EXPECT_EQ(base["seconds"]["max"], 10);
  EXPECT_DOUBLE_EQ(base["tokens_per_second"], 64 / 6.0);
  EXPECT_FALSE(base.contains("speed_up"));
  const auto& speed_up = json[1]["contexts"][0]["prefill"]["speed_up"];  // 2, 5, 6
  EXPECT_EQ(speed_up["median"], 5);
  EXPECT_EQ(speed_up["min"], 2);
  EXPECT_EQ(speed_up["max"], 6);
  EXPECT_EQ(json[1]["pattern"], "FSFS");
  const std::string table = speed_table(speeds);
  for (const auto* words : {"6.00 (4.00-10.00)", "x5.00 (2.00-6.00)", "indexer", "half"}) {
    EXPECT_THAT(table, HasSubstr(words));
  }
}

TEST_F(SpeedTest, SenselessOptionsAreRefused) {
  const auto refused = [&](const SpeedOptions& options, const std::vector<std::int32_t>& tokens) {
    return thrown<InputError>([&] { measure_speed(model_, patterns_, tokens, options); });
  };
  EXPECT_THAT(refused({.contexts = {}}, tokens_), HasSubstr("contexts"));
  EXPECT_THAT(refused({.contexts = {8, 4}}, tokens_), HasSubstr("contexts"));
  EXPECT_THAT(refused({.contexts = {0, 4}}, tokens_), HasSubstr("contexts"));
  EXPECT_THAT(refused({.contexts = {4}, .repeats = 0}, tokens_), HasSubstr("repeats"));
  EXPECT_THAT(refused(options_, {}), HasSubstr("tokens to run"));
  EXPECT_THAT(refused(options_, {300}), HasSubstr("ids below 300"));
}

}  // namespace
}  // namespace indexcache
