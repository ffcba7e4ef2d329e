#include "indexcache/base/span.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <thread>

namespace indexcache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Key;

class Spans : public ::testing::Test {
 protected:
  Spans() {
    TimedSpan::take();
    TimedSpan::enable(true);
  }
  ~Spans() override {
    TimedSpan::enable(false);
    TimedSpan::set_synchronize({});
    TimedSpan::take();
  }

  static void work(int milliseconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  }
};

TEST_F(Spans, NestedTimeIsCountedOnceForTheInnermostName) {
  const auto start = std::chrono::steady_clock::now();
  {
    TimedSpan layer("layer");
    work(10);
    {
      TimedSpan indexer("indexer");
      work(40);
    }
    work(10);
  }
  const double wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto seconds = TimedSpan::take();
  ASSERT_THAT(seconds, ElementsAre(Key("indexer"), Key("layer")));
  // Lower bounds hold on a busy machine too; together the two are no more than the time that passed.
  EXPECT_GE(seconds.at("indexer"), 0.040);
  EXPECT_GE(seconds.at("layer"), 0.020);
  EXPECT_LE(seconds.at("indexer") + seconds.at("layer"), wall);
}

TEST_F(Spans, SumPerNameAndTakeClears) {
  for (int i = 0; i < 3; ++i) {
    TimedSpan span("part");
    work(5);
  }
  const auto seconds = TimedSpan::take();
  ASSERT_THAT(seconds, ElementsAre(Key("part")));
  EXPECT_GE(seconds.at("part"), 0.015);
  EXPECT_THAT(TimedSpan::take(), IsEmpty());
}

TEST_F(Spans, OffTheyRecordNothing) {
  TimedSpan::enable(false);
  {
    TimedSpan span("part");
    work(1);
  }
  EXPECT_THAT(TimedSpan::take(), IsEmpty());
}

TEST_F(Spans, MayBeTurnedOnAndOffInsideASpan) {
  TimedSpan::enable(false);
  {
    TimedSpan before("before");
    TimedSpan::enable(true);
    {
      TimedSpan inner("inner");
      TimedSpan::enable(false);
    }
  }
  EXPECT_THAT(TimedSpan::take(), ElementsAre(Key("inner")));
}

TEST_F(Spans, SynchronizeBeforeEveryReadingOfTheClock) {
  int calls = 0;
  TimedSpan::set_synchronize([&] { ++calls; });
  {
    TimedSpan outer("outer");
    EXPECT_EQ(calls, 1);
    TimedSpan inner("inner");
    EXPECT_EQ(calls, 2);
  }
  EXPECT_EQ(calls, 4);
}

}  // namespace
}  // namespace indexcache
