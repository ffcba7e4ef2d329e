// Bounds that the pieces of a group of queries share, so that each can drop candidates early. Of a query a
// piece publishes, now and then, a key that ceil(k / pieces) of its own so far reach. The least of what all pieces
// published is a bound: together they have k keys that reach it. No piece waits: one that has published
// nothing yet is no bound, and what is read is a bound whenever it was written.
#pragma once

#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

// What the pieces of all groups share in IndexTopkCudaParams::counters, all zero between calls.
struct PieceCounters {
  RankedKey* bounds;            // [M][pieces]; kEveryKey: none yet
  unsigned long long* arrived;  // [M]: pieces that are done, in the upper half, and their keys
  int* published;               // [M]: places for keys given out
  __device__ __forceinline__ PieceCounters(const IndexTopkCudaParams& p, const IndexTopkPlan& plan)
      : bounds(static_cast<RankedKey*>(p.counters)),
        arrived(bounds + std::int64_t{p.num_queries} * plan.pieces),
        published(reinterpret_cast<int*>(arrived + p.num_queries)) {}
};

// Of a query's best k a piece's share.
__device__ __forceinline__ int share_of_piece(const IndexTopkCudaParams& p,
                                              const IndexTopkPlan& plan) {
  return (p.top_k + plan.pieces - 1) / plan.pieces;
}

// Before which tile of a walk bounds are exchanged: first when a quarter of the keys is a share, later at
// twice as many keys; not where less than half of the walk is still to come. 0: no more.
template <class L>
__device__ __forceinline__ int bound_tile(const KeyWalk& walk, int tile) {
  return 2 * tile * L::kTileKeys <= walk.count ? tile : 0;
}
template <class L>
__device__ __forceinline__ int first_bound_tile(const KeyWalk& walk, int share) {
  const int keys = min(max(4 * share, 1024), 4096);
  return bound_tile<L>(walk, (keys + L::kTileKeys - 1) / L::kTileKeys);
}
template <class L>
__device__ __forceinline__ int next_bound_tile(const KeyWalk& walk, int tile) {
  return bound_tile<L>(walk, 2 * tile);
}

// A warp: the least of what the pieces published for a query.
__device__ __forceinline__ RankedKey least_bound(const RankedKey* bounds, int pieces) {
  RankedKey least = kNoKey;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) % 32; i < pieces; i += 32) {
    const RankedKey bound = *static_cast<const volatile RankedKey*>(bounds + i);
    least = bound < least ? bound : least;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const RankedKey other = __shfl_xor_sync(kAllLanes, least, step);
    least = other < least ? other : least;
  }
  return least;
}

// The scorers, while none of them scans or has anything staged: publish a query's bound, read those of the
// other pieces, and drop what does not reach the least from the list.
template <class L>
__device__ void raise_threshold(const IndexTopkCudaParams& p, const IndexTopkPlan& plan,
                                GroupShared<L>& shared, int query, RankedKey* list) {
  const BlockTeam team = block_team();
  GroupState& state = shared.state;
  SelectScratch& other = shared.select[query];
  const int size = state.count[query], share = share_of_piece(p, plan);
  RankedKey* bounds =
      PieceCounters(p, plan).bounds + std::int64_t{shared.item.first_query + query} * plan.pieces;
  const HeldList held(team, list, size);
  const RankedKey own =
      held_threshold(team, held, list, size, share, *reinterpret_cast<HeldScratch*>(shared.staged),
                     other, share / 8);
  if (team.rank < 32) {
    if (team.rank == 0) {
      if (own != kEveryKey) *static_cast<volatile RankedKey*>(bounds + shared.item.piece) = own;
      other.slot = 0;
    }
    __syncwarp();
    const RankedKey least = least_bound(bounds, plan.pieces);
    if (team.rank == 0 && least > state.threshold[query]) state.threshold[query] = least;
  }
  team.sync();
  place_held(held, state.threshold[query], &other.slot,
             [&](RankedKey key, int place) { list[place] = key; });
  team.sync();
  if (team.rank == 0) state.count[query] = other.slot;
}

}  // namespace indexcache::index_topk_device
