// Selection among ranked keys (score_order.cuh) by a team of threads: one warp or one block.
// Keys are distinct, so "the best `count`" is one set, whatever order they are stored in.
#pragma once

#include <cstdint>

#include "indexcache/kernels/score_order.cuh"

namespace indexcache::device {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The threads that work together: `size` of them, `rank` the caller's place. A warp or the block.
struct WarpTeam {
  static constexpr int size = 32;
  int rank = static_cast<int>(threadIdx.x) & 31;
  __device__ __forceinline__ void sync() const { __syncwarp(); }
};
template <int threads>
struct BlockTeam {
  static constexpr int size = threads;
  int rank = static_cast<int>(threadIdx.x);
  __device__ __forceinline__ void sync() const { __syncthreads(); }
};

// A team's scratch in shared memory.
struct SelectScratch {
  unsigned counts[256];
  RankedKey low, high;
  unsigned bin, above, inside;
};

// visit(key) for every key of the list, several loads in flight. All threads of a warp call visit
// equally often; valid is false past the end.
template <class Team, class Visit>
__device__ __forceinline__ void for_each_key(const Team& team, const RankedKey* list, int size,
                                             const Visit& visit) {
  constexpr int kBatch = 8;
  for (int base = 0; base < size; base += kBatch * Team::size) {
    RankedKey keys[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = base + i * Team::size + team.rank;
      keys[i] = at < size ? list[at] : 0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) visit(keys[i], base + i * Team::size + team.rank < size);
  }
}

// Sets scratch.low and .high to the least and the greatest key.
template <class Team>
__device__ void find_extremes(const Team& team, const RankedKey* list, int size,
                              SelectScratch& scratch) {
  if (team.rank == 0) {
    scratch.low = ~0ull;
    scratch.high = 0;
  }
  team.sync();
  RankedKey low = ~0ull, high = 0;
  for_each_key(team, list, size, [&](RankedKey key, bool valid) {
    if (!valid) return;
    low = key < low ? key : low;
    high = key > high ? key : high;
  });
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const RankedKey other_low = __shfl_xor_sync(kAllLanes, low, step);
    const RankedKey other_high = __shfl_xor_sync(kAllLanes, high, step);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (threadIdx.x % 32 == 0) {
    atomicMin(&scratch.low, low);
    atomicMax(&scratch.high, high);
  }
  team.sync();
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

// A threshold that exactly `wanted` of the keys reach (1 <= wanted <= size), at most the wanted-th
// greatest. Radix selection from the highest bit in which keys differ, 8 bits a pass, until a bin is
// taken whole.
template <class Team>
__device__ RankedKey select_threshold(const Team& team, const RankedKey* list, int size, int wanted,
                                      SelectScratch& scratch) {
  find_extremes(team, list, size, scratch);
  const RankedKey low = scratch.low, high = scratch.high;
  if (wanted == size) return low;
  int bits = 64 - __clzll(static_cast<long long>(low ^ high));  // below these all keys agree
  RankedKey prefix = bits == 64 ? 0 : high >> bits;
  unsigned left = static_cast<unsigned>(wanted);
  while (bits > 0) {
    const int width = bits < 8 ? bits : 8, shift = bits - width;
    team.sync();
    for (int i = team.rank; i < 256; i += Team::size) scratch.counts[i] = 0;
    team.sync();
    for_each_key(team, list, size, [&](RankedKey key, bool valid) {
      const RankedKey digits = key >> shift;
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
    if (left == scratch.inside) break;
  }
  return prefix << bits;
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
  __syncthreads();
  unsigned result = through - own;
  all = 0;
#pragma unroll
  for (unsigned i = 0; i < threads / 32; ++i) {
    if (i < warp) result += scratch.counts[i];
    all += scratch.counts[i];
  }
  __syncthreads();
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
    __syncthreads();
    for_each_key(team, list, size, [&](RankedKey key, bool valid) {
      const auto bit = static_cast<unsigned>(key_index(key) - first - base);
      if (valid && key >= threshold && bit < 32u * used) atomicOr(&bits[bit / 32], 1u << bit % 32);
    });
    __syncthreads();
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
    __syncthreads();
  }
}

}  // namespace indexcache::device
