// Which queries share a list of keys.
#include "indexcache/kernels/query_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "indexcache/kernels/union_entry.h"

namespace indexcache {
namespace {

using ::testing::ElementsAre;

TEST(QueryGroups, AreAlignedToPositionsAndNeverCrossRequests) {
  // Positions 0..6 | 4..5 | none | 2.
  const QueryGroups groups = query_groups({{0, 7}, {4, 2}, {9, 0}, {2, 1}});
  EXPECT_THAT(groups.begin, ElementsAre(0, 3, 6, 7, 9, 10));
  EXPECT_THAT(groups.request, ElementsAre(0, 0, 0, 1, 3));
}

TEST(QueryGroups, NoQueriesHaveNoGroups) {
  EXPECT_THAT(query_groups({}).begin, ElementsAre(0));
  EXPECT_THAT(query_groups({{5, 0}}).request, ElementsAre());
}

// Cut at multiples of kGroupQueries, a context has the same groups as a whole.
TEST(QueryGroups, AlignedChunksKeepTheGroups) {
  const QueryGroups whole = query_groups({{1, 20}});
  std::vector<std::int32_t> joined = {0};
  std::int64_t position = 1;
  for (const std::int64_t next : {3, 12, 15, 21}) {
    const QueryGroups part = query_groups({{position, next - position}});
    const std::int32_t before = joined.back();
    for (std::size_t g = 1; g < part.begin.size(); ++g) joined.push_back(before + part.begin[g]);
    position = next;
  }
  EXPECT_EQ(joined, whole.begin);
}

}  // namespace
}  // namespace indexcache
