// How the pieces of work of a launch of sparse_mla's Hopper kernel go round its CTAs. Free of CUDA and Torch.
//
// CTA c takes piece r * ctas + c in round r of `whole`. A rest that was given to as many CTAs as it
// has pieces would cost all the others a round. So it is laid end to end and cut evenly for `cutters`
// CTAs: CTA c has what lies from c * rest / cutters to (c + 1) * rest / cutters, parts of at most
// two pieces. Where a CTA's part ends inside a piece, the next CTA goes on with its sums, exactly as
// they are. So parts of a piece are done one after the other: the last at the end of a CTA's work,
// each before it a round earlier than the next, to be there in time. A CTA waits for one of a lower
// number only, and one that takes a part at its beginning waits for nobody.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>

#include "indexcache/kernels/on_both.h"

namespace indexcache {

struct Rounds {
  int whole, rest, cutters;  // cutters == rest: not cut
};

// Cut where that saves a sixth of a round or more. At most about four parts a piece, and no more than
// there are rounds for.
inline Rounds rounds_of(std::int64_t pieces, std::int64_t ctas, bool may_cut) {
  constexpr std::int64_t kMostParts = 4;
  const std::int64_t whole = pieces / ctas, rest = pieces % ctas;
  const bool worth = may_cut && whole > 0 && 6 * rest <= 5 * ctas;
  const std::int64_t cutters = worth ? std::min(ctas, rest * std::min(whole, kMostParts)) : rest;
  return {static_cast<int>(whole), static_cast<int>(rest), static_cast<int>(cutters)};
}

// From begin / cutters to end / cutters of piece `piece` of the rest: what comes at `turn` of a CTA's
// works.
struct RestPart {
  int turn = INT_MAX, piece = 0, begin = 0, end = 0;
};
struct CtaRest {
  RestPart parts[2];  // in the order of their turns; those there are not come never
  int works = 0;      // of this CTA, whole pieces included
};
INDEXCACHE_ON_BOTH inline CtaRest rest_of(const Rounds& r, int cta) {
  CtaRest own;
  own.works = r.whole;
  if (cta >= r.cutters) return own;
  const int piece = cta * r.rest / r.cutters, begin = cta * r.rest - piece * r.cutters;
  // So many CTAs further on than this one ends the piece `i` later.
  const auto further = [&](int i) { return ((piece + i + 1) * r.cutters - 1) / r.rest - cta; };
  const int beyond = begin + r.rest - r.cutters;
  if (beyond <= 0) {
    own.works += 1;
    own.parts[0] = {r.whole - further(0), piece, begin, begin + r.rest};
  } else {
    own.works += 2;
    own.parts[0] = {r.whole - further(1), piece + 1, 0, beyond};
    own.parts[1] = {r.whole + 1, piece, begin, r.cutters};
  }
  return own;
}

// Before which of its pairs of tiles a piece is cut at `at` / cutters. First and last parts shorter than
// kLeastPairs are none; where that would be true of others, the last part is all.
constexpr int kLeastPairs = 2;
INDEXCACHE_ON_BOTH inline int cut_of(const Rounds& r, int pairs, int at) {
  if (at == r.cutters) return pairs;
  if (pairs * r.rest < kLeastPairs * r.cutters) return 0;
  const int before = pairs * at / r.cutters;
  return before < kLeastPairs ? 0 : before > pairs - kLeastPairs ? pairs : before;
}

}  // namespace indexcache
