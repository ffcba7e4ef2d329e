// Pieces of work dealt out by their lengths. Where they are short and few, a CTA that has the long ones is
// what a launch waits for. So each CTA finds which are its own, from the counts of all groups, while
// it waits for its first latents.
//
// The pieces of the first kOwnRounds rounds are as they come: nobody waits for them. The others are ranked, the
// longest first, of equal length the lower first, and dealt out round by round, back and forth: at
// first the longest goes to the CTA that has least.
#pragma once

#include "indexcache/kernels/warp_sum.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_tile.cuh"

namespace indexcache::device {

__device__ inline int length_class(const Launch& p, int group) {
  const int count = max(0, min(__ldg(p.counts + group), static_cast<int>(p.entry_stride)));
  return length_class(p.by_length, (count + kTileKeys - 1) / kTileKeys);
}

// In the room of tile 1's weights, which are not there yet.
struct Lengths {
  std::uint8_t of_piece[kMostDealt];
  std::uint16_t ranks[kLengthClasses][kWarpgroup];
};
static_assert(sizeof(Lengths) <= kBlockBytes);

// How many CTAs have more than this one so far, or as much and a lower number.
__device__ inline int place_of_cta(const Launch& p, Dealt& dealt, int thread) {
  const int ctas = static_cast<int>(gridDim.x), cta = static_cast<int>(blockIdx.x);
  const auto length = [&](int c) {
    int sum = 0;
    for (int round = 0; round < kOwnRounds; ++round) sum -= length_class(p, round * ctas + c);
    return sum;
  };
  const int own = length(cta);
  int before = 0;
#pragma unroll 1
  for (int c = thread; c < ctas; c += kWarpgroup) {
    const int other = length(c);
    before += other > own || (other == own && c < cta);
  }
  before = __reduce_add_sync(0xFFFFFFFF, before);
  if (thread % 32 == 0) atomicAdd(&dealt.place, before);
  barrier_sync(kRight, kWarpgroup);
  return dealt.place;
}

// From how many pieces each thread has of each class to the rank of its first.
__device__ inline void rank_pieces(Lengths& lengths, Dealt& dealt, int thread) {
  std::uint16_t* counts = &lengths.ranks[0][0] + thread * kLengthClasses;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kLengthClasses; ++i) sum += counts[i];
  const auto through = static_cast<int>(sum_through(static_cast<unsigned>(sum)));
  if (thread % 32 == 31) dealt.warp_sums[thread / 32] = through;
  barrier_sync(kRight, kWarpgroup);
  int before = through - sum;
  for (int warp = 0; warp < thread / 32; ++warp) before += dealt.warp_sums[warp];
#pragma unroll
  for (int i = 0; i < kLengthClasses; ++i) {
    const int count = counts[i];
    counts[i] = static_cast<std::uint16_t>(before);
    before += count;
  }
  barrier_sync(kRight, kWarpgroup);
}

// By the warpgroup of right values.
__device__ inline void deal_by_length(const Launch& p, Shared& shared, int thread) {
  auto& lengths = *reinterpret_cast<Lengths*>(shared.weights);
  Dealt& dealt = shared.course.dealt;
  const int ctas = static_cast<int>(gridDim.x), first = kOwnRounds * ctas,
            pieces = static_cast<int>(p.num_groups) - first;
  if (thread == 0) dealt.place = 0;
  for (int i = thread; i < kMostDealtRounds; i += kWarpgroup) dealt.group[i] = kNoGroup;
#pragma unroll 4
  for (int i = thread; i < pieces; i += kWarpgroup)
    lengths.of_piece[i] = static_cast<std::uint8_t>(length_class(p, first + i));
#pragma unroll
  for (int i = 0; i < kLengthClasses; ++i) lengths.ranks[i][thread] = 0;
  barrier_sync(kRight, kWarpgroup);
  // Neighbours to a thread: ranks of one class are in the order of pieces.
  const int each = (pieces + kWarpgroup - 1) / kWarpgroup, begin = min(pieces, thread * each),
            end = min(pieces, begin + each);
#pragma unroll 1
  for (int i = begin; i < end; ++i) ++lengths.ranks[lengths.of_piece[i]][thread];
  const int place = place_of_cta(p, dealt, thread);
  rank_pieces(lengths, dealt, thread);
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const int rank = lengths.ranks[lengths.of_piece[i]][thread]++,
              round = static_cast<int>(__umulhi(rank, p.by_length.cta_reciprocal)),
              at = rank - round * ctas;
    if (place == (round % 2 == 0 ? ctas - 1 - at : at)) dealt.group[round] = first + i;
  }
  mbarrier_arrive(&shared.dealt_known);
  __syncwarp();
}

}  // namespace indexcache::device
