// Selection among ranked keys that stand in the registers of a team of threads (ranked_select.cuh has that
// from memory).
#pragma once

#include "indexcache/kernels/ranked_select.cuh"

namespace indexcache::device {

// A list's keys in the registers of a team, `each` a thread at most: a thread's i-th is key i * Team::size + rank.
// Those that no key of the list fills hold kEveryKey, which is no key's.
template <class Team, int each>
struct HeldKeys {
  RankedKey keys[each];
  int used;  // of a thread's

  __device__ __forceinline__ explicit HeldKeys(int size)
      : keys{}, used((size + Team::size - 1) / Team::size) {}
  __device__ __forceinline__ HeldKeys(const Team& team, const RankedKey* list, int size)
      : HeldKeys(size) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = i * Team::size + team.rank;
      keys[i] = at < size ? list[at] : kEveryKey;
    }
  }
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      if (i >= used) break;
      if (keys[i] != kEveryKey) visit(keys[i]);
    }
  }
};

// A team's scratch in shared memory for keys that it holds.
struct alignas(16) HeldScratch {
  static constexpr int kBins = 2048, kMostWarps = 16;
  unsigned bins[kBins];
  unsigned low[kMostWarps], high[kMostWarps], sums[kMostWarps];
  unsigned bin, above, inside;
};

// The threshold that exactly `wanted` of the `size` keys that a team holds reach, or at most `slack` more; kEveryKey where
// there are no more than `wanted`. Radix selection as in ranked_select.cuh, 11 bits a pass, first of ranks: two passes are
// the rule, one where few are wanted. Where equal ranks straddle the threshold, of the lower halves of their keys.
template <class Team, int each>
__device__ __forceinline__ RankedKey held_threshold(const Team& team,
                                                    const HeldKeys<Team, each>& held, int size,
                                                    int wanted, HeldScratch& scratch,
                                                    int slack = 0) {
  if (size <= wanted) return kEveryKey;
  if (wanted == 0) return kNoKey;
  constexpr int kDigits = 11, kWarps = Team::size / 32;
  static_assert(Team::size * 4 == HeldScratch::kBins && HeldScratch::kBins == 1 << kDigits);
  static_assert(kWarps == HeldScratch::kMostWarps);
  const unsigned lane = threadIdx.x % 32, warp = team.rank / 32;
  uint4* own_bins = reinterpret_cast<uint4*>(scratch.bins) + (Team::size - 1 - team.rank);
  std::uint32_t low = ~0u, high = 0;
  held.for_each([&](RankedKey key) {
    const auto rank = static_cast<std::uint32_t>(key >> 32);
    low = min(low, rank);
    high = max(high, rank);
  });
  // Of every eight lanes one has a key that reaches the least of their best.
  if (wanted <= Team::size / 8) {
    low = high;
#pragma unroll
    for (int step = 1; step < 8; step *= 2) {
      low = max(low, __shfl_xor_sync(kAllLanes, low, step));
    }
  }
  low = __reduce_min_sync(kAllLanes, low);
  high = __reduce_max_sync(kAllLanes, high);
  if (lane == 0) {
    scratch.low[warp] = low;
    scratch.high[warp] = high;
  }
  *own_bins = {0, 0, 0, 0};
  team.sync();
  low = __reduce_min_sync(kAllLanes, scratch.low[lane % kWarps]);
  high = __reduce_max_sync(kAllLanes, scratch.high[lane % kWarps]);
  int bits = 32 - __clz(static_cast<int>(high - low));
  std::uint32_t prefix = 0, rank = 0;
  bool equal = false;  // the ranks of all that are left
  auto left = static_cast<unsigned>(wanted);
#pragma unroll 1
  for (;;) {
    if (bits == 0) {
      rank = low + prefix;
      equal = true;
      low = prefix = 0;
      bits = 32;
    }
    const int width = min(bits, kDigits), shift = bits - width;
    held.for_each([&](RankedKey key) {
      const auto upper = static_cast<std::uint32_t>(key >> 32);
      const std::uint32_t half = equal ? static_cast<std::uint32_t>(key) : upper;
      const std::uint32_t digits = (half - low) >> shift;
      if (half >= low && digits >> width == prefix && (!equal || upper == rank)) {
        atomicAdd(&scratch.bins[digits & ((1u << width) - 1)], 1u);
      }
    });
    team.sync();
    const uint4 counts = *own_bins;
    *own_bins = {0, 0, 0, 0};
    const unsigned own = counts.x + counts.y + counts.z + counts.w;
    unsigned above = own;
#pragma unroll
    for (unsigned step = 1; step < 32; step *= 2) {
      const unsigned before = __shfl_up_sync(kAllLanes, above, step);
      if (lane >= step) above += before;
    }
    if (lane == 31) scratch.sums[warp] = above;
    team.sync();
    above += __reduce_add_sync(kAllLanes, lane < warp ? scratch.sums[lane] : 0u) - own;
    if (above < left && left <= above + own) {
      const unsigned of[4] = {counts.w, counts.z, counts.y, counts.x};
      int i = 0;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        if (i == j && above + of[j] < left) {
          above += of[j];
          ++i;
        }
      }
      scratch.bin = HeldScratch::kBins - 1 - 4 * team.rank - i;
      scratch.above = above;
      scratch.inside = i == 0 ? of[0] : i == 1 ? of[1] : i == 2 ? of[2] : of[3];
    }
    team.sync();
    left -= scratch.above;
    prefix = prefix << width | scratch.bin;
    bits = shift;
    if (scratch.inside - left <= static_cast<unsigned>(slack)) {
      const std::uint32_t least = low + (prefix << bits);
      return equal ? RankedKey{rank} << 32 | least : RankedKey{least} << 32;
    }
  }
}

}  // namespace indexcache::device
