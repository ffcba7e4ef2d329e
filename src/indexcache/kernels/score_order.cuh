// The order of index scores as integers: higher score first, then lower index; -0 equals +0, NaN
// ranks below -inf. A key joins rank and index, so that keys are distinct and the best k of any set
// of them are one set.
#pragma once

#include <cstdint>

namespace indexcache::device {

using RankedKey = unsigned long long;

constexpr RankedKey kEveryKey = 0;   // as a threshold: all pass
constexpr RankedKey kNoKey = ~0ull;  // as a threshold: none passes

__device__ __forceinline__ std::uint32_t score_rank(float score) {
  if (score != score) return 0;
  const std::uint32_t bits = __float_as_uint(score + 0.0f);  // -0 + 0 = +0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ RankedKey ranked_key(float score, int index) {
  return RankedKey{score_rank(score)} << 32 | ~static_cast<std::uint32_t>(index);
}

__device__ __forceinline__ int key_index(RankedKey key) {
  return static_cast<int>(~static_cast<std::uint32_t>(key));
}

// The score below which no key reaches the threshold: a key may pass only if !(score < it). NaN,
// below which nothing is, where even NaN passes.
__device__ __forceinline__ float threshold_score(RankedKey threshold) {
  constexpr std::uint32_t kInfinity = 0xFF800000u;
  std::uint32_t rank = static_cast<std::uint32_t>(threshold >> 32);
  if (rank > kInfinity) rank = kInfinity;
  return __uint_as_float(rank >> 31 ? rank & 0x7FFFFFFFu : ~rank);
}

}  // namespace indexcache::device
