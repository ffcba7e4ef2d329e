// Selection among ranked keys that stand in the registers of a team of threads (ranked_select.cuh has that
// from memory).
#pragma once

#include "indexcache/kernels/predicated.cuh"
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
  // visit(key, present), for some at a time: without a branch, one key's work runs under another's.
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
    constexpr int kBatch = 4;
    static_assert(each % kBatch == 0);
#pragma unroll
    for (int base = 0; base < each; base += kBatch) {
      if (base >= used) break;
#pragma unroll
      for (int i = base; i < base + kBatch; ++i) visit(keys[i], keys[i] != kEveryKey);
    }
  }
};

// A team's scratch in shared memory for keys that it holds.
struct alignas(128) HeldScratch {
  static constexpr int kBins = 2048, kMostWarps = 16, kFew = 64;
  unsigned bins[kBins];
  unsigned low[kMostWarps], high[kMostWarps], sums[kMostWarps];
  unsigned bin, above, inside;
  unsigned taken;  // places of few
  RankedKey few[kFew], threshold;
  AsideWords aside;
};

// The wanted-th greatest of the held keys whose ranks are in the bin from `least` on, `width` wide, which are scratch.inside,
// kFew at most: each is compared with all. take(key, there) for all held keys and once more for the few: there, for the wanted
// of these and for those of higher ranks.
template <class Team, int each, class Take>
__device__ __forceinline__ RankedKey threshold_of_few(const Team& team,
                                                      const HeldKeys<Team, each>& held,
                                                      HeldScratch& scratch, unsigned wanted,
                                                      std::uint32_t least, std::uint32_t width,
                                                      const Take& take) {
  constexpr int kBatch = 4;
  const std::uint32_t taken = shared_address(&scratch.taken), few = shared_address(scratch.few),
                      aside = scratch.aside.own();
#pragma unroll
  for (int base = 0; base < each; base += kBatch) {
    if (base >= held.used) break;
    bool inside[kBatch], any = false;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const RankedKey key = held.keys[base + i];
      const auto rank = static_cast<std::uint32_t>(key >> 32);
      inside[i] = rank - least < width;
      any |= inside[i];
      take(key, rank >= least + width);
    }
    if (!__any_sync(kAllLanes, any)) continue;
    std::uint32_t place[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) place[i] = fetch_add(inside[i] ? taken : aside, 1);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      store_where(inside[i], few + 8 * place[i], held.keys[base + i]);
    }
  }
  team.sync();
  const auto count = static_cast<int>(scratch.inside);
  if (team.rank < count) {
    const RankedKey own = scratch.few[team.rank];
    unsigned above = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) above += scratch.few[i] > own;
    if (above == wanted - 1) scratch.threshold = own;
    take(own, above < wanted);
  }
  team.sync();
  return scratch.threshold;
}

// What a team's selection found; `taken`: the keys that reach the threshold have been taken, as the team knows.
struct HeldSelection {
  RankedKey threshold;
  bool taken;
};

// The threshold that exactly `wanted` of the `size` keys that a team holds reach, or at most `slack` more; kEveryKey where
// there are no more than `wanted`. Radix selection as in ranked_select.cuh, 11 bits a pass, of ranks, until the bin that the
// threshold is in holds few keys: one pass is the rule. Where equal ranks straddle the threshold, of the lower halves of
// their keys. Where the last step is among few keys, take(key, there) meets each key that reaches the threshold, once `there`,
// and others that are not: a pass over the keys that the caller need not make.
template <class Team, int each, class Take>
__device__ __forceinline__ HeldSelection select_held(const Team& team,
                                                     const HeldKeys<Team, each>& held, int size,
                                                     int wanted, int slack, HeldScratch& scratch,
                                                     const Take& take) {
  if (size <= wanted) return {kEveryKey, false};
  if (wanted == 0) return {kNoKey, false};
  constexpr int kDigits = 11, kWarps = Team::size / 32;
  static_assert(Team::size * 4 == HeldScratch::kBins && HeldScratch::kBins == 1 << kDigits);
  static_assert(kWarps == HeldScratch::kMostWarps);
  const unsigned lane = threadIdx.x % 32, warp = team.rank / 32;
  uint4* own_bins = reinterpret_cast<uint4*>(scratch.bins) + (Team::size - 1 - team.rank);
  std::uint32_t low = ~0u, high = 0;
  held.for_each([&](RankedKey key, bool present) {
    const auto rank = static_cast<std::uint32_t>(key >> 32);
    low = min(low, present ? rank : ~0u);
    high = max(high, rank);  // of none that is absent: that is 0
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
  if (team.rank == 0) scratch.taken = 0;
  *own_bins = {0, 0, 0, 0};
  team.sync();
  low = __reduce_min_sync(kAllLanes, scratch.low[lane % kWarps]);
  high = __reduce_max_sync(kAllLanes, scratch.high[lane % kWarps]);
  int bits = 32 - __clz(static_cast<int>(high - low));
  std::uint32_t prefix = 0, rank = 0;
  bool equal = false;  // the ranks of all that are left
  auto left = static_cast<unsigned>(wanted);
  // Absent keys have rank 0. So do scores that are no numbers, with which every pass has to tell the two apart.
  const bool all_numbers = low > 0;
  bool first = all_numbers;
#pragma unroll 1
  for (;; first = false) {
    if (bits == 0) {
      rank = low + prefix;
      equal = true;
      first = false;
      low = prefix = 0;
      bits = 32;
    }
    const int width = min(bits, kDigits), shift = bits - width;
    const std::uint32_t bins = shared_address(scratch.bins), mask = (1u << width) - 1,
                        aside = scratch.aside.own();
    if (first) {
      held.for_each([&](RankedKey key, bool) {
        const auto upper = static_cast<std::uint32_t>(key >> 32);
        add_to(upper >= low ? bins + 4 * ((upper - low) >> shift) : aside, 1);
      });
    } else {
      held.for_each([&](RankedKey key, bool present) {
        const auto upper = static_cast<std::uint32_t>(key >> 32);
        const std::uint32_t half = equal ? static_cast<std::uint32_t>(key) : upper;
        const std::uint32_t digits = (half - low) >> shift;
        const bool inside =
            present & (half >= low) & (digits >> width == prefix) & (!equal | (upper == rank));
        add_to(inside ? bins + 4 * (digits & mask) : aside, 1);
      });
    }
    team.sync();
    const uint4 counts = *own_bins;
    *own_bins = {0, 0, 0, 0};
    const unsigned own = counts.x + counts.y + counts.z + counts.w;
    unsigned above = sum_through(own);
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
    const std::uint32_t least = low + (prefix << bits);
    if (scratch.inside - left <= static_cast<unsigned>(slack)) {
      return {equal ? RankedKey{rank} << 32 | least : RankedKey{least} << 32, false};
    }
    // A bin has 2^21 ranks at most, and from +inf's on 2^23 are no score's: least + 2^bits does not wrap.
    if (all_numbers && !equal && scratch.inside <= HeldScratch::kFew) {
      return {threshold_of_few(team, held, scratch, left, least, 1u << bits, take), true};
    }
  }
}

}  // namespace indexcache::device
