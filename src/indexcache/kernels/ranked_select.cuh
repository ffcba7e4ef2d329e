// Selection among ranked keys (score_order.cuh) by a team of threads: one warp or one block.
// Keys are distinct, so "the best `count`" is one set, whatever order they are stored in.
#pragma once

#include <cstdint>

#include "indexcache/kernels/mbarrier.cuh"
#include "indexcache/kernels/score_order.cuh"

namespace indexcache::device {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The threads that work together: `size` of them, `rank` the caller's place. A warp, or the block's
// first `threads`, which meet at barrier 0.
struct WarpTeam {
  static constexpr int size = 32;
  int rank = static_cast<int>(threadIdx.x) & 31;
  __device__ __forceinline__ void sync() const { __syncwarp(); }
};
template <int threads>
struct BlockTeam {
  static constexpr int size = threads;
  int rank = static_cast<int>(threadIdx.x);
  __device__ __forceinline__ void sync() const { barrier_sync(0, threads); }
};

// A team's scratch in shared memory.
struct SelectScratch {
  static constexpr int kMostWarps = 8;
  unsigned counts[256];
  RankedKey low[kMostWarps], high[kMostWarps];
  unsigned bin, above, inside;
};

// visit(key, valid) for every key of the list (or rank, the upper half of one), several loads in
// flight. All threads of a warp call visit equally often, for keys in the list's order; valid is
// false past the end.
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

// The least and the greatest key.
template <class Key>
struct Extremes {
  Key low, high;
};
template <class Team, class Key>
__device__ __forceinline__ Extremes<Key> find_extremes(const Team& team, const Key* list, int size,
                                                       SelectScratch& scratch) {
  Key low = ~Key{0}, high = 0;
  for_each_key(team, list, size, [&](Key key, bool valid) {
    if (!valid) return;
    low = key < low ? key : low;
    high = key > high ? key : high;
  });
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Key other_low = __shfl_xor_sync(kAllLanes, low, step);
    const Key other_high = __shfl_xor_sync(kAllLanes, high, step);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (Team::size == 32) return {low, high};
  constexpr int kWarps = Team::size / 32;
  static_assert(kWarps <= SelectScratch::kMostWarps);
  if (threadIdx.x % 32 == 0) {
    scratch.low[team.rank / 32] = low;
    scratch.high[team.rank / 32] = high;
  }
  team.sync();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const auto other_low = static_cast<Key>(scratch.low[i]);
    const auto other_high = static_cast<Key>(scratch.high[i]);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  return {low, high};
}

// One warp: the bin that holds the wanted-th greatest of what the counts hold, into scratch.bin;
// how many are in higher bins and how many in it into .above and .inside.
__device__ __forceinline__ void find_bin(unsigned wanted, SelectScratch& scratch) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int top = 255 - 8 * lane;  // this lane's bins: top, top - 1, ... top - 7
  unsigned counts[8], own = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) own += counts[i] = scratch.counts[top - i];
  unsigned through = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned before = __shfl_up_sync(kAllLanes, through, step);
    if (lane >= step) through += before;
  }
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

// A threshold, at most the wanted-th greatest key (1 <= wanted <= size). Radix selection from the
// highest bit in which keys differ, 8 bits a pass, until a bin is taken whole. `exact`: just `wanted`
// keys reach it, as always where keys are distinct; ranks may repeat.
template <class Key>
struct Threshold {
  Key key;
  bool exact;
};
template <class Team, class Key>
__device__ Threshold<Key> find_threshold(const Team& team, const Key* list, int size, int wanted,
                                         SelectScratch& scratch) {
  const auto [low, high] = find_extremes(team, list, size, scratch);
  if (wanted == size) return {low, true};
  // Above these bits all keys agree.
  int bits = 64 - __clzll(static_cast<long long>(low ^ high));
  Key prefix = bits == 8 * sizeof(Key) ? 0 : high >> bits;
  unsigned left = static_cast<unsigned>(wanted);
  bool exact = false;
  while (bits > 0 && !exact) {
    const int width = bits < 8 ? bits : 8, shift = bits - width;
    team.sync();
    for (int i = team.rank; i < 256; i += Team::size) scratch.counts[i] = 0;
    team.sync();
    for_each_key(team, list, size, [&](Key key, bool valid) {
      const Key digits = key >> shift;
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
    exact = left == scratch.inside;
  }
  return {prefix << bits, exact};
}

// A threshold that exactly `wanted` of the keys reach.
template <class Team>
__device__ RankedKey select_threshold(const Team& team, const RankedKey* list, int size, int wanted,
                                      SelectScratch& scratch) {
  return find_threshold(team, list, size, wanted, scratch).key;
}

// One warp: the same for a list in device memory, whose ranks pass to `room` words of shared memory
// first. Where they do not fit, or equal ranks straddle the threshold, the list itself is searched.
__device__ __forceinline__ RankedKey select_threshold_by_rank(const RankedKey* list, int size,
                                                              int wanted, std::uint32_t* ranks,
                                                              int room, SelectScratch& scratch) {
  const WarpTeam team;
  if (size <= room) {
    int at = team.rank;
    for_each_key<16>(team, list, size, [&](RankedKey key, bool valid) {
      if (valid) ranks[at] = static_cast<std::uint32_t>(key >> 32);
      at += 32;
    });
    team.sync();
    const Threshold<std::uint32_t> found = find_threshold(team, ranks, size, wanted, scratch);
    if (found.exact) return RankedKey{found.key} << 32;
  }
  return select_threshold(team, list, size, wanted, scratch);
}

// One warp: keeps, in place and in their order, the keys that reach the threshold; returns how many.
__device__ __forceinline__ int compact(RankedKey* list, int size, RankedKey threshold) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  int kept = 0;
  for (int base = 0; base < size; base += 32) {
    const RankedKey key = base + lane < size ? list[base + lane] : 0;
    const bool keep = base + lane < size && key >= threshold;
    const unsigned keepers = __ballot_sync(kAllLanes, keep);
    if (keep) list[kept + __popc(keepers & ((1u << lane) - 1))] = key;
    kept += __popc(keepers);
    __syncwarp();
  }
  return kept;
}

// One warp: the indices of the keys that reach the threshold, in the list's order; returns how many.
__device__ __forceinline__ int take_indices(const RankedKey* list, int size, RankedKey threshold,
                                            int* indices) {
  const WarpTeam team;
  int taken = 0;
  for_each_key<16>(team, list, size, [&](RankedKey key, bool valid) {
    const bool take = valid && key >= threshold;
    const unsigned takers = __ballot_sync(kAllLanes, take);
    if (take) indices[taken + __popc(takers & ((1u << team.rank) - 1))] = key_index(key);
    taken += __popc(takers);
  });
  team.sync();
  return taken;
}

// One warp: writes the indices minus `first` to `out`, ascending. They are in order but for their
// places within stretches of 32 x words, or a divisor of it, from `origin` on. Sets a bit for each
// in words + 32 words of shared memory; words is a multiple of 32.
template <int words>
__device__ __forceinline__ void write_nearly_ascending(const int* indices, int size, int origin,
                                                       int first, std::int32_t* out,
                                                       unsigned* bits) {
  constexpr int kOwn = words / 32, kStretch = 32 * words;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  static_assert(kOwn <= 32);
  unsigned* own_bits = bits + lane * (kOwn + 1);  // odd: lanes meet no bank twice
#pragma unroll 8
  for (int i = 0; i < kOwn; ++i) own_bits[i] = 0;
  __syncwarp();
  for (int at = 0; at < size;) {
    const int base = origin + (indices[at] - origin) / kStretch * kStretch;
    for (unsigned inside = kAllLanes; inside == kAllLanes; at += __popc(inside)) {
      const int bit = at + lane < size ? indices[at + lane] - base : kStretch;
      const int word = bit / 32;
      if (bit < kStretch) atomicOr(&bits[word + word / kOwn], 1u << bit % 32);
      inside = __ballot_sync(kAllLanes, bit < kStretch);
    }
    __syncwarp();
    int own = 0;
    unsigned filled = 0;  // words of this lane with bits
#pragma unroll 8
    for (int i = 0; i < kOwn; ++i) {
      own += __popc(own_bits[i]);
      filled |= (own_bits[i] != 0) << i;
    }
    int through = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, through, step);
      if (lane >= step) through += before;
    }
    std::int32_t* place = out + (through - own);
    for (; filled != 0; filled &= filled - 1) {
      const int i = __ffs(static_cast<int>(filled)) - 1;
      for (unsigned rest = own_bits[i]; rest != 0; rest &= rest - 1) {
        *place++ = base - first + 32 * (lane * kOwn + i) + __ffs(static_cast<int>(rest)) - 1;
      }
      own_bits[i] = 0;
    }
    out += __shfl_sync(kAllLanes, through, 31);
    __syncwarp();
  }
}

// A team copies a list.
template <class Team>
__device__ __forceinline__ void copy_keys(const Team& team, const RankedKey* from, int size,
                                          RankedKey* to) {
  int at = team.rank;
  for_each_key<16>(team, from, size, [&](RankedKey key, bool valid) {
    if (valid) to[at] = key;
    at += Team::size;
  });
  team.sync();
}

// The block: the sum of `own` over the threads before this one; `all` gets that over all of them.
template <int threads>
__device__ __forceinline__ unsigned sum_before(unsigned own, unsigned& all,
                                               SelectScratch& scratch) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned through = own;
#pragma unroll
  for (unsigned step = 1; step < 32; step *= 2) {
    const unsigned before = __shfl_up_sync(kAllLanes, through, step);
    if (lane >= step) through += before;
  }
  if (lane == 31) scratch.counts[warp] = through;
  barrier_sync(0, threads);
  unsigned result = through - own;
  all = 0;
#pragma unroll
  for (unsigned i = 0; i < threads / 32; ++i) {
    if (i < warp) result += scratch.counts[i];
    all += scratch.counts[i];
  }
  barrier_sync(0, threads);
  return result;
}

// The block: the indices, minus `first`, of the keys that reach the threshold, ascending, to `out`.
// All are in [first, first + range). Sets a bit for each in `bits`, `words` words of shared memory,
// as often as it takes to cover the range.
template <int threads>
__device__ void write_ascending(const RankedKey* list, int size, RankedKey threshold, int first,
                                int range, std::int32_t* out, unsigned* bits, int words,
                                SelectScratch& scratch) {
  const BlockTeam<threads> team;
  for (int base = 0; base < range; base += 32 * words) {
    const int used = min(words, (range - base + 31) / 32);
    for (int i = team.rank; i < used; i += threads) bits[i] = 0;
    team.sync();
    for_each_key(team, list, size, [&](RankedKey key, bool valid) {
      const auto bit = static_cast<unsigned>(key_index(key) - first - base);
      if (valid && key >= threshold && bit < 32u * used) atomicOr(&bits[bit / 32], 1u << bit % 32);
    });
    team.sync();
    const int chunk = (used + threads - 1) / threads | 1;  // odd: threads meet no bank twice
    const int from = min(team.rank * chunk, used), to = min(from + chunk, used);
    unsigned own = 0, all = 0;
    for (int i = from; i < to; ++i) own += __popc(bits[i]);
    std::int32_t* place = out + sum_before<threads>(own, all, scratch);
    for (int i = from; i < to; ++i) {
      for (unsigned rest = bits[i]; rest != 0; rest &= rest - 1) {
        *place++ = base + 32 * i + __ffs(static_cast<int>(rest)) - 1;
      }
    }
    out += all;
    team.sync();
  }
}

}  // namespace indexcache::device
