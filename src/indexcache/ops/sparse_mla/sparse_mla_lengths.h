// When the pieces of work of a launch of sparse_mla's Hopper kernel are dealt out by their lengths, and what
// the CTAs need for that beside the counts (sparse_mla_wgmma_lengths.cuh). Free of CUDA and Torch.
#pragma once

#include <cstdint>

#include "indexcache/kernels/on_both.h"
#include "indexcache/ops/sparse_mla/sparse_mla_rounds.h"

namespace indexcache {

// The pieces of the first rounds are as they come. Of those behind them, so many in so many rounds at most are
// dealt out. Classes of length that are told apart: of all numbers of tiles up to 15.
constexpr int kOwnRounds = 2, kMostDealt = 4096, kMostDealtRounds = 48, kLengthClasses = 16;

struct LengthDealing {
  bool used = false;
  int class_factor = 0;              // 2^16 times classes of length a tile
  std::uint32_t cta_reciprocal = 0;  // 2^32 / CTAs, rounded up: a rank's high product is its round
};

// Not used where it is not worth it: the rest is cut, or pieces are too few or too many. A piece has `most_tiles`
// tiles of entries at most.
inline LengthDealing length_dealing(const Rounds& rounds, std::int64_t pieces, std::int64_t ctas,
                                    std::int64_t most_tiles) {
  const bool fit = ctas > 1 && rounds.cutters == rounds.rest && rounds.whole > kOwnRounds &&
                   pieces - kOwnRounds * ctas <= kMostDealt &&
                   pieces <= (kOwnRounds + kMostDealtRounds - 1) * ctas && most_tiles > 0 &&
                   most_tiles <= std::int64_t{1} << 20;
  if (!fit) return {};
  return {true, static_cast<int>(((kLengthClasses - 1) << 16) / most_tiles),
          static_cast<std::uint32_t>(((std::int64_t{1} << 32) + ctas - 1) / ctas)};
}

// The class of a piece of so many tiles. 0: the longest.
INDEXCACHE_ON_BOTH inline int length_class(const LengthDealing& dealing, int tiles) {
  return kLengthClasses - 1 - (tiles * dealing.class_factor >> 16);
}

}  // namespace indexcache
