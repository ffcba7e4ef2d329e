// Selection among ranked keys that stand in the registers of a team of threads (ranked_select.cuh has that
// from memory).
#pragma once

#include "indexcache/kernels/ranked_select.cuh"

namespace indexcache::device {

// A list's keys in the registers of a team, `each` a thread at most; those that no key of the list fills
// hold kEveryKey, which is no key's.
template <class Team, int each>
struct HeldKeys {
  RankedKey keys[each];
  int used;  // of a thread's

  __device__ __forceinline__ HeldKeys(const Team& team, const RankedKey* list, int size)
      : used((size + Team::size - 1) / Team::size) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = i * Team::size + team.rank;
      keys[i] = at < size ? list[at] : kEveryKey;
    }
  }
  __device__ __forceinline__ void copy(const Team& team, RankedKey* to, int size) const {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = i * Team::size + team.rank;
      if (at < size) to[at] = keys[i];
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

// The threshold that exactly `wanted` of the keys' ranks reach, or at most `slack` more; `found` is false
// where equal ranks straddle it. Radix selection as above, 11 bits a pass: two passes are the rule.
template <class Team, int each>
__device__ __forceinline__ Threshold<std::uint32_t> find_rank(const Team& team,
                                                              const HeldKeys<Team, each>& held,
                                                              int wanted, int slack,
                                                              HeldScratch& scratch) {
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
  std::uint32_t prefix = 0;
  auto left = static_cast<unsigned>(wanted);
  bool found = false;
#pragma unroll 1
  while (bits > 0 && !found) {
    const int width = min(bits, kDigits), shift = bits - width;
    held.for_each([&](RankedKey key) {
      const std::uint32_t digits = (static_cast<std::uint32_t>(key >> 32) - low) >> shift;
      if (digits >> width == prefix) atomicAdd(&scratch.bins[digits & ((1u << width) - 1)], 1u);
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
    found = scratch.inside - left <= static_cast<unsigned>(slack);
  }
  return {low + (prefix << bits), found};
}

// The threshold that exactly `wanted` of a list's keys reach, or at most `slack` more, which the team
// holds; kEveryKey where there are no more than `wanted`.
template <class Team, int each>
__device__ __forceinline__ RankedKey held_threshold(const Team& team,
                                                    const HeldKeys<Team, each>& held,
                                                    const RankedKey* list, int size, int wanted,
                                                    HeldScratch& scratch, SelectScratch& other,
                                                    int slack = 0) {
  if (size <= wanted) return kEveryKey;
  if (wanted == 0) return kNoKey;
  const auto found = find_rank(team, held, wanted, slack, scratch);
  if (found.found) return RankedKey{found.key} << 32;
  return select_threshold(team, list, size, wanted, nullptr, 0, other);
}

// take(key, place) for the held keys that reach the threshold, places from *slot on, which the team has
// agreed on. Neighbouring lanes have neighbouring places.
template <class Team, int each, class Take>
__device__ __forceinline__ void place_held(const HeldKeys<Team, each>& held, RankedKey threshold,
                                           int* slot, const Take& take) {
  const unsigned lane = threadIdx.x % 32, before = (1u << lane) - 1;
  const auto takers = [&](RankedKey key) {
    return __ballot_sync(kAllLanes, key != kEveryKey && key >= threshold);
  };
  int wanted = 0;
#pragma unroll
  for (int i = 0; i < each; ++i) {
    if (i >= held.used) break;
    wanted += __popc(takers(held.keys[i]));
  }
  int place = lane == 0 && wanted > 0 ? atomicAdd(slot, wanted) : 0;
  place = __shfl_sync(kAllLanes, place, 0);
#pragma unroll
  for (int i = 0; i < each; ++i) {
    if (i >= held.used) break;
    const unsigned all = takers(held.keys[i]);
    if (all >> lane & 1) take(held.keys[i], place + __popc(all & before));
    place += __popc(all);
  }
}

}  // namespace indexcache::device
