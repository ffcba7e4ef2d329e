#include "indexcache/ops/sparse_mla/sparse_mla_lengths.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace indexcache {
namespace {

LengthDealing dealing_of(std::int64_t pieces, std::int64_t ctas, std::int64_t most_tiles,
                         bool may_cut = false) {
  return length_dealing(rounds_of(pieces, ctas, may_cut), pieces, ctas, most_tiles);
}

// Launches of the device test, and the bundled model's real sets.
TEST(SparseMlaLengths, ShortPiecesOfSomeRoundsAreDealtOut) {
  for (const int rest : {0, 1, 44, 131}) EXPECT_TRUE(dealing_of(4 * 132 + rest, 132, 3).used);
  EXPECT_TRUE(dealing_of(1366, 132, 12).used);
  EXPECT_TRUE(dealing_of(1366, 114, 12).used);
}

TEST(SparseMlaLengths, NotWhereItIsNotWorthItOrHasNoRoom) {
  EXPECT_TRUE(dealing_of(3 * 132, 132, 3).used);
  EXPECT_FALSE(dealing_of(3 * 132 - 1, 132, 3).used) << "two rounds are as they come";
  EXPECT_TRUE(dealing_of(1366, 132, 96).used);
  EXPECT_FALSE(dealing_of(1366, 132, 96, true).used) << "the rest is cut";
  EXPECT_TRUE(dealing_of(2 * 132 + kMostDealt, 132, 3).used);
  EXPECT_FALSE(dealing_of(2 * 132 + kMostDealt + 1, 132, 3).used) << "more pieces than room";
  EXPECT_TRUE(dealing_of(49 * 8, 8, 3).used);
  EXPECT_FALSE(dealing_of(49 * 8 + 1, 8, 3).used) << "more rounds than room";
  EXPECT_FALSE(dealing_of(100, 1, 3).used) << "one CTA has all of them";
  EXPECT_FALSE(dealing_of(1366, 132, 0).used) << "no entries";
}

// The last round dealt out is the last that a CTA looks at: behind it is the mark of the end.
TEST(SparseMlaLengths, ARanksHighProductIsItsRound) {
  for (int ctas = 2; ctas < 300; ++ctas) {
    const auto dealing = dealing_of(3 * ctas, ctas, 3);
    ASSERT_TRUE(dealing.used);
    for (std::uint32_t rank = 0; rank < kMostDealt; ++rank) {
      const auto round =
          static_cast<std::uint32_t>(std::uint64_t{rank} * dealing.cta_reciprocal >> 32);
      ASSERT_EQ(round, rank / ctas) << rank << " of " << ctas;
    }
    const std::int64_t most = std::min<std::int64_t>(kMostDealt, (kMostDealtRounds - 1) * ctas);
    EXPECT_TRUE(dealing_of(kOwnRounds * ctas + most, ctas, 3).used);
    EXPECT_LT((most - 1) / ctas, kMostDealtRounds - 1);
  }
}

TEST(SparseMlaLengths, LongerPiecesAreOfNoLaterClass) {
  for (const std::int64_t most_tiles : {1, 2, 3, 12, 15, 16, 96, 1000, 1 << 20}) {
    const auto dealing = dealing_of(1366, 132, most_tiles);
    ASSERT_TRUE(dealing.used);
    EXPECT_EQ(length_class(dealing, 0), kLengthClasses - 1);
    int last = kLengthClasses - 1;
    for (std::int64_t tiles = 1; tiles <= most_tiles; ++tiles) {
      const int now = length_class(dealing, static_cast<int>(tiles));
      ASSERT_LE(now, last);
      ASSERT_GE(now, 0);
      if (most_tiles < kLengthClasses) {
        ASSERT_LT(now, last) << tiles << " of " << most_tiles;
      }
      last = now;
    }
  }
}

}  // namespace
}  // namespace indexcache
