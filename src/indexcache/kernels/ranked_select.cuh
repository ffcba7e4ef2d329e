// Selection among ranked keys (score_order.cuh) by a team of threads. Keys are distinct, so "the best
// `count`" is one set, whatever order they are stored in.
#pragma once

#include <cstdint>

#include "indexcache/kernels/mbarrier.cuh"
#include "indexcache/kernels/score_order.cuh"
#include "indexcache/kernels/warp_sum.cuh"

namespace indexcache::device {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Whole warps of a block that work on one list: `rank` is the caller's place among the `size`
// threads, `barrier` the numbered barrier at which they meet.
template <int threads>
struct Team {
  static constexpr int size = threads;
  int rank, barrier;
  __device__ __forceinline__ void sync() const { barrier_sync(barrier, threads); }
};

// A team's scratch in shared memory.
struct SelectScratch {
  static constexpr int kMostWarps = 16;
  unsigned counts[256];
  RankedKey low[kMostWarps], high[kMostWarps];
  unsigned bin, above, inside;
  int slot;  // the next place in a list that threads append to
};

// A warp: the next places in a list, as many as each lane wants.
__device__ __forceinline__ int take_places(int* next, int wanted) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int through = sum_through(wanted);
  int from = 0;
  if (lane == 31 && through > 0) from = atomicAdd(next, through);
  return __shfl_sync(kAllLanes, from, 31) + through - wanted;
}

// visit(key, valid) for every key of the list (or rank, the upper half of one), several loads in
// flight. All threads of a warp call visit equally often; valid is false past the end.
template <int kBatch = 8, class Team, class Key, class Visit>
__device__ __forceinline__ void for_each_key(const Team& team, const Key* list, int size,
                                             const Visit& visit) {
  for (int base = 0; base < size; base += kBatch * Team::size) {
    Key keys[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = base + i * Team::size + team.rank;
      keys[i] = at < size ? list[at] : 0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) visit(keys[i], base + i * Team::size + team.rank < size);
  }
}

// The least and the greatest key: of a thread, and joined over its team.
template <class Key>
struct Extremes {
  Key low = ~Key{0}, high = 0;
  __device__ __forceinline__ void add(Extremes other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
  }
};
template <class Team, class Key>
__device__ __forceinline__ Extremes<Key> join(const Team& team, Extremes<Key> own,
                                              SelectScratch& scratch) {
  constexpr int kWarps = Team::size / 32;
  static_assert(kWarps <= SelectScratch::kMostWarps);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    own.add(
        {__shfl_xor_sync(kAllLanes, own.low, step), __shfl_xor_sync(kAllLanes, own.high, step)});
  }
  if (threadIdx.x % 32 == 0) {
    scratch.low[team.rank / 32] = own.low;
    scratch.high[team.rank / 32] = own.high;
  }
  team.sync();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    own.add({static_cast<Key>(scratch.low[i]), static_cast<Key>(scratch.high[i])});
  }
  return own;
}

// One warp: the bin that holds the wanted-th greatest of what the counts hold, into scratch.bin;
// how many are in higher bins and how many in it into .above and .inside.
__device__ __forceinline__ void find_bin(unsigned wanted, SelectScratch& scratch) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int top = 255 - 8 * lane;  // this lane's bins: top, top - 1, ... top - 7
  unsigned counts[8], own = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) own += counts[i] = scratch.counts[top - i];
  const unsigned through = sum_through(own);
  unsigned above = through - own;
  if (above >= wanted || through < wanted) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (above < wanted && wanted <= above + counts[i]) {
      scratch.bin = static_cast<unsigned>(top - i);
      scratch.above = above;
      scratch.inside = counts[i];
    }
    above += counts[i];
  }
}

// A threshold, at most the wanted-th greatest key (1 <= wanted < size). Radix selection on what keys
// exceed the least by, from the highest bit that occurs, 8 bits a pass, until a bin is taken whole: keys
// close to each other thus still spread over the bins; or until at most `slack` more reach the threshold.
// `found`: so many do, as always where keys are distinct; ranks may repeat.
template <class Key>
struct Threshold {
  Key key;
  bool found;
};
template <class Team, class Key>
__device__ Threshold<Key> find_threshold(const Team& team, const Key* list, int size, int wanted,
                                         int slack, const Extremes<Key>& all,
                                         SelectScratch& scratch) {
  int bits = 64 - __clzll(static_cast<long long>(all.high - all.low));
  Key prefix = 0;
  unsigned left = static_cast<unsigned>(wanted);
  bool found = false;
  while (bits > 0 && !found) {
    const int width = bits < 8 ? bits : 8, shift = bits - width;
    team.sync();
    for (int i = team.rank; i < 256; i += Team::size) scratch.counts[i] = 0;
    team.sync();
    for_each_key(team, list, size, [&](Key key, bool valid) {
      const Key digits = (key - all.low) >> shift;
      if (valid && digits >> width == prefix) {
        atomicAdd(&scratch.counts[static_cast<unsigned>(digits) & ((1u << width) - 1)], 1u);
      }
    });
    team.sync();
    if (team.rank < 32) find_bin(left, scratch);
    team.sync();
    left -= scratch.above;
    prefix = prefix << width | scratch.bin;
    bits = shift;
    found = scratch.inside - left <= static_cast<unsigned>(slack);
  }
  return {all.low + (prefix << bits), found};
}

// The threshold that exactly `wanted` of the keys reach, or at most `slack` more; kEveryKey where there
// are no more than `wanted`.
// Their ranks pass to `room`, `words` of shared memory, if they fit; where they do not, or equal ranks
// straddle the threshold, the list itself is searched.
template <class Team>
__device__ __noinline__ RankedKey select_threshold(Team team, const RankedKey* list, int size,
                                                   int wanted, std::uint32_t* room, int words,
                                                   SelectScratch& scratch, int slack = 0) {
  if (size <= wanted) return kEveryKey;
  if (wanted == 0) return kNoKey;
  if (size <= words) {
    Extremes<std::uint32_t> own;
    int at = team.rank;
    for_each_key<16>(team, list, size, [&](RankedKey key, bool valid) {
      const auto rank = static_cast<std::uint32_t>(key >> 32);
      if (valid) {
        room[at] = rank;
        own.add({rank, rank});
      }
      at += Team::size;
    });
    const auto all = join(team, own, scratch);
    const auto found =
        find_threshold<Team, std::uint32_t>(team, room, size, wanted, slack, all, scratch);
    if (found.found) return RankedKey{found.key} << 32;
  }
  Extremes<RankedKey> own;
  for_each_key(team, list, size, [&](RankedKey key, bool valid) {
    if (valid) own.add({key, key});
  });
  team.sync();
  return find_threshold(team, list, size, wanted, slack, join(team, own, scratch), scratch).key;
}

// take(key, place) for the keys of [low, high), places from scratch.slot on, which the team has agreed
// on. In a list's own place if `within`: what is overwritten has been read.
template <bool within = false, class Team, class Take>
__device__ __forceinline__ void take_keys(const Team& team, const RankedKey* list, int size,
                                          RankedKey low, RankedKey high, SelectScratch& scratch,
                                          const Take& take) {
  constexpr int kBatch = Team::size < 512 ? 16 : 8;
#pragma unroll 1
  for (int base = 0; base < size; base += kBatch * Team::size) {
    RankedKey keys[kBatch];
    unsigned wanted = 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = base + i * Team::size + team.rank;
      keys[i] = at < size ? list[at] : kEveryKey;  // which is no key's
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool takes = keys[i] >= low && keys[i] < high && keys[i] != kEveryKey;
      wanted |= static_cast<unsigned>(takes) << i;
    }
    if (within) team.sync();
    int place = take_places(&scratch.slot, __popc(wanted));
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (wanted >> i & 1) take(keys[i], place++);
    }
  }
  team.sync();
}

// Keeps, in place, the keys that reach the threshold; returns how many.
template <class Team>
__device__ __forceinline__ int compact(const Team& team, RankedKey* list, int size,
                                       RankedKey threshold, SelectScratch& scratch) {
  if (team.rank == 0) scratch.slot = 0;
  take_keys<true>(team, list, size, threshold, kNoKey, scratch,
                  [&](RankedKey key, int place) { list[place] = key; });
  return scratch.slot;
}

// Appends the keys of [low, high) to `to`.
template <class Team>
__device__ __forceinline__ void append_keys(const Team& team, const RankedKey* list, int size,
                                            RankedKey low, RankedKey high, RankedKey* to,
                                            SelectScratch& scratch) {
  take_keys(team, list, size, low, high, scratch,
            [&](RankedKey key, int place) { to[place] = key; });
}

// Sums over a team: of `own` over the threads before this one and over all; whether any has raised its flag. Less than 2^31.
struct TeamSum {
  unsigned before, all;
  bool any;
};
// The scratch is in use until the team meets again.
template <class Team>
__device__ __forceinline__ TeamSum sum_before(const Team& team, unsigned own, bool flag,
                                              SelectScratch& scratch) {
  constexpr unsigned kFlag = 1u << 31;
  const unsigned lane = threadIdx.x % 32, warp = team.rank / 32;
  const unsigned through = sum_through(own);
  const unsigned flagged = __any_sync(kAllLanes, flag) ? kFlag : 0;
  if (lane == 31) scratch.counts[warp] = through | flagged;
  team.sync();
  const unsigned counted = lane < Team::size / 32 ? scratch.counts[lane] : 0,
                 sum = counted & ~kFlag;
  return {__reduce_add_sync(kAllLanes, lane < warp ? sum : 0) + through - own,
          __reduce_add_sync(kAllLanes, sum), __any_sync(kAllLanes, counted != sum) != 0};
}

}  // namespace indexcache::device
