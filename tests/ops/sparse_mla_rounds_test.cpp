#include "indexcache/ops/sparse_mla/sparse_mla_rounds.h"

#include <gtest/gtest.h>

#include <vector>

namespace indexcache {
namespace {

// One CTA's share of one piece, in pairs of tiles, and when it comes.
struct Share {
  int cta, turn, begin, end;
};

// Who does what of the rest's piece `piece`, in the order of CTAs; empty shares left out.
std::vector<Share> shares_of(const Rounds& r, int piece, int pairs) {
  std::vector<Share> shares;
  for (int cta = 0; cta < r.cutters; ++cta) {
    for (const RestPart& part : rest_of(r, cta).parts) {
      if (part.turn == INT_MAX || part.piece != piece) continue;
      const Share share = {cta, part.turn, cut_of(r, pairs, part.begin),
                           cut_of(r, pairs, part.end)};
      if (share.begin < share.end) shares.push_back(share);
    }
  }
  return shares;
}

void check_piece(const Rounds& r, int piece, int pairs) {
  const std::vector<Share> shares = shares_of(r, piece, pairs);
  ASSERT_FALSE(shares.empty());
  EXPECT_EQ(shares.front().begin, 0);
  EXPECT_EQ(shares.back().end, pairs);
  for (std::size_t i = 0; i + 1 < shares.size(); ++i) {
    // Sums go to the next CTA, and are there a round before it needs them.
    EXPECT_EQ(shares[i].end, shares[i + 1].begin);
    EXPECT_EQ(shares[i].cta + 1, shares[i + 1].cta);
    EXPECT_LT(shares[i].turn, shares[i + 1].turn);
  }
}

void check_cta(const Rounds& r, int cta, int pairs) {
  const CtaRest own = rest_of(r, cta);
  int parts = 0, left = 0;
  for (const RestPart& part : own.parts) {
    if (part.turn == INT_MAX) continue;
    ++parts;
    EXPECT_GE(part.turn, 0);
    EXPECT_LT(part.turn, own.works);
    EXPECT_LT(part.piece, r.rest);
    left += cut_of(r, pairs, part.end) < pairs;
  }
  EXPECT_EQ(own.works, r.whole + parts);
  EXPECT_TRUE(own.parts[0].turn < own.parts[1].turn || parts == 0);
  EXPECT_LE(left, 1) << "a CTA has room to leave the sums of one piece";
}

TEST(SparseMlaRounds, EveryPieceIsDoneOnceInOrder) {
  for (const int ctas : {1, 2, 7, 132}) {
    for (int pieces = 1; pieces < 6 * ctas; pieces += 1 + ctas / 20) {
      const Rounds r = rounds_of(pieces, std::min(pieces, ctas), true);
      EXPECT_EQ(r.whole * std::min(pieces, ctas) + r.rest, pieces);
      for (const int pairs : {1, 2, 3, 7, 8, 16, 17, 95}) {
        for (int piece = 0; piece < r.rest; ++piece) check_piece(r, piece, pairs);
        for (int cta = 0; cta < ctas; ++cta) check_cta(r, cta, pairs);
      }
    }
  }
}

TEST(SparseMlaRounds, ARestIsCutWhereThatSavesTime) {
  // 4096 queries in groups of three: 46 pieces for 132 CTAs.
  const Rounds cut = rounds_of(1366, 132, true);
  EXPECT_EQ(cut.whole, 10);
  EXPECT_EQ(cut.rest, 46);
  EXPECT_EQ(cut.cutters, 132);
  for (int cta = 0; cta < 132; ++cta) {
    int pairs = 0;
    for (const RestPart& part : rest_of(cut, cta).parts)
      pairs += cut_of(cut, 48, part.end) - cut_of(cut, 48, part.begin);
    EXPECT_LE(pairs, 18) << "of 48, CTA "
                         << cta;  // 48 * 46 / 132 and a short part of a neighbour's
  }
  EXPECT_EQ(rounds_of(1366, 132, false).cutters, 46);
  EXPECT_EQ(rounds_of(100, 100, true).cutters, 0);
  EXPECT_EQ(rounds_of(132 * 4 + 131, 132, true).cutters, 131) << "hardly a rest";
  EXPECT_EQ(rounds_of(132 + 3, 132, true).cutters, 3) << "no round in which to prepare";
}

TEST(SparseMlaRounds, ShortPiecesAreLeftWhole) {
  const Rounds r = rounds_of(1366, 132, true);
  for (int at = 0; at < r.cutters; ++at) EXPECT_EQ(cut_of(r, 5, at), 0);
  EXPECT_EQ(cut_of(r, 5, r.cutters), 5);
}

}  // namespace
}  // namespace indexcache
