#include "indexcache/base/error.h"

#include <gtest/gtest.h>

#include <string>

namespace indexcache {
namespace {

TEST(Errors, SayWhereExpectedAndFound) {
  EXPECT_STREQ(expectation_error("config.json: index_topk", "a positive integer", "-3").what(),
               "config.json: index_topk: expected a positive integer, found -3");
  EXPECT_STREQ(input_error("{}: line {}", "a.txt", 3).what(), "a.txt: line 3");
}

TEST(Quote, KeepsAMessageOneReadableLine) {
  EXPECT_EQ(quote("plain"), "\"plain\"");
  EXPECT_EQ(quote(""), "\"\"");
  EXPECT_EQ(quote("a\"b\\c"), "\"a\\\"b\\\\c\"");
  EXPECT_EQ(quote(std::string_view("\n\0\x1b\x7f\xff", 5)), "\"\\x0a\\x00\\x1b\\x7f\\xff\"");
  EXPECT_EQ(quote(std::string(80, 'x')), "\"" + std::string(80, 'x') + "\"");
  EXPECT_EQ(quote(std::string(81, 'x')),
            "\"" + std::string(80, 'x') + "\" (the first of 81 bytes)");
}

TEST(AssertDeathTest, NamesFileAndCondition) {
  const int one = 1;
  INDEXCACHE_ASSERT(one == 1);
  EXPECT_DEATH(INDEXCACHE_ASSERT(one == 2), "internal error: .*error_test.cpp:[0-9]+: one == 2");
}

}  // namespace
}  // namespace indexcache
