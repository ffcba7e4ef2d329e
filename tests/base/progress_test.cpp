#include "indexcache/base/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

// What `use(stream)` writes to a file.
template <typename Use>
std::string logged(const Use& use) {
  std::FILE* stream = std::tmpfile();
  use(stream);
  std::string text(static_cast<std::size_t>(std::ftell(stream)), '\0');
  std::rewind(stream);
  EXPECT_EQ(std::fread(text.data(), 1, text.size(), stream), text.size());
  std::fclose(stream);
  return text;
}

TEST(Progress, ShortWorkLeavesOnePlainLineInALog) {
  const auto text = logged([](std::FILE* stream) {
    Progress progress("search", "evaluations", 10, 0, stream);
    for (int i = 1; i <= 10; ++i) progress.update(i, "loss 2.5");
  });
  EXPECT_THAT(text, MatchesRegex("search: 10/10 evaluations, took [0-9]+s, loss 2.5\n"));
}

TEST(Progress, SaysHowFarItCameWhenWorkStopsEarly) {
  const auto text = logged([](std::FILE* stream) {
    Progress progress("train", "steps", 100, 40, stream);
    progress.set_total(90);
    progress.update(41);
  });
  EXPECT_THAT(text, StartsWith("train: 41/90 steps, took "));
}

TEST(Progress, LeavesARefusalToBeOneLineAlone) {
  const auto text = logged([](std::FILE* stream) {
    try {
      Progress progress("search", "evaluations", 10, 0, stream);
      progress.update(1);
      throw 1;
    } catch (int) {
      Progress progress("after", "steps", 1, 0, stream);  // no exception of its own
    }
  });
  EXPECT_THAT(text, StartsWith("after: 0/1 steps"));
}

TEST(Progress, WithoutAStreamIsSilent) {
  ::testing::internal::CaptureStderr();
  {
    Progress progress("search", "evaluations", 10, 0, nullptr);
    progress.update(5);
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(Progress, RedrawsOneLineWithRateAndTimeLeft) {
  const auto text = logged([](std::FILE* stream) {
    // Resumed at step 100 of 1000: only the 20 steps made here count into the rate.
    Progress progress("search", "evaluations", 1000, 100, stream, ProgressDisplay::kRedrawnLine);
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    progress.update(120);
    progress.update(121);  // too soon to draw again
  });
  EXPECT_THAT(text, StartsWith("\r\033[Ksearch: 120/1000 evaluations, "));
  EXPECT_THAT(text, HasSubstr("s left\r\033[Ksearch: 121/1000 evaluations, took "));
  // At most 20 steps in the 0.25 s that passed at least.
  const double rate = std::stod(text.substr(text.find(", ") + 2));
  EXPECT_GT(rate, 0);
  EXPECT_LE(rate, 80.1);
}

TEST(Progress, CountsNoStepOfAnEarlierRunIntoTheRate) {
  const auto text = logged([](std::FILE* stream) {
    Progress progress("search", "evaluations", 1000, 0, stream, ProgressDisplay::kRedrawnLine);
    progress.set_resumed(100);  // answered from a journal, it turns out
    progress.update(100);
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    progress.update(120);
  });
  EXPECT_THAT(text, StartsWith("\r\033[Ksearch: 120/1000 evaluations, "));
  EXPECT_LE(std::stod(text.substr(text.find(", ") + 2)), 80.1);
}

}  // namespace
}  // namespace indexcache
