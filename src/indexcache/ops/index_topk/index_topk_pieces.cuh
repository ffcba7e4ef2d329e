// Few groups of queries: the key range of each in pieces, a block each. A piece publishes its share of a
// query's best keys and some more, or all it has where that fits; the block that comes last selects from
// what all published, and from the lists of pieces that turn out to have more. No block waits for another.
#pragma once

#include "indexcache/ops/index_topk/index_topk_bounds.cuh"

namespace indexcache::index_topk_device {

// What a piece kept to itself: its list's size, and the least key it published where it has more.
struct PieceRest {
  RankedKey bound;  // kEveryKey: published all
  int size;
};

// The scorers after the scan of a piece. All of them work on a query, one query after the other: what
// is selected from then stands in their registers.
template <class L>
struct PieceMerge {
  const IndexTopkCudaParams& p;
  const IndexTopkPlan& plan;
  GroupShared<L>& shared;
  RankedKey* lists;  // the block's
  PieceCounters counters{p, plan};
  BlockTeam team = block_team();
  const Item& item = shared.item;
  GroupState& state = shared.state;

  // What the pieces of a query published: [M][pieces * k] keys, [M][pieces] rests.
  __device__ __forceinline__ RankedKey* merged(int query) const {
    auto* keys =
        reinterpret_cast<RankedKey*>(static_cast<std::uint8_t*>(p.workspace) + plan.lists_bytes);
    return keys + std::int64_t{item.first_query + query} * plan.pieces * p.top_k;
  }
  __device__ __forceinline__ PieceRest* rests(int query) const {
    auto* all = reinterpret_cast<PieceRest*>(
        static_cast<std::uint8_t*>(p.workspace) + plan.lists_bytes +
        std::int64_t{p.num_queries} * plan.pieces * p.top_k * sizeof(RankedKey));
    return all + std::int64_t{item.first_query + query} * plan.pieces;
  }

  // The bins are where scores were staged.
  __device__ __forceinline__ HeldScratch& scratch() const {
    return *reinterpret_cast<HeldScratch*>(shared.staged);
  }

  // A query's keys to their places among the merged. What all pieces publish fits a list.
  __device__ __forceinline__ void publish(int query) const {
    SelectScratch& select = shared.select[query];
    const int size = state.count[query];
    const bool all = size <= min(p.top_k, kCandidateCapacity / plan.pieces);
    const int published = all ? size : plan.quota;
    int first = 0;
    if (team.rank == 0) {
      first = atomicAdd(&counters.published[item.first_query + query], published);
    }
    const RankedKey* list = lists + query * kCandidateCapacity;
    const HeldList held(team, list, size);
    const RankedKey threshold =
        all ? kEveryKey : held_threshold(team, held, list, size, published, scratch(), select);
    if (team.rank == 0) {
      select.slot = first;
      rests(query)[item.piece] = {threshold, size};
    }
    team.sync();
    RankedKey* to = merged(query);
    place_held(held, threshold, &select.slot, [&](RankedKey key, int place) { to[place] = key; });
  }

  // Whether this piece is the group's last. The barriers carry what one thread orders to and from the
  // others.
  __device__ __forceinline__ bool arrive() const {
    team.sync();
    if (team.rank == 0) {
      unsigned before;
      asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(__cvta_generic_to_global(counters.arrived + item.group))
                   : "memory");
      state.last = before + 1 == static_cast<unsigned>(plan.pieces);
    }
    team.sync();
    return state.last;
  }

  // The last block: a query's row from what the pieces published. A piece of which all went into the
  // result may have more: its best k then join, still in its block's list.
  __device__ __forceinline__ void write_row(int query) const {
    static_assert(kMostPieces <= kScorers);
    SelectScratch& select = shared.select[query];
    RankedKey* list = merged(query);
    const int size = counters.published[item.first_query + query];
    const PieceRest rest = team.rank < plan.pieces ? rests(query)[team.rank] : PieceRest{};
    const int start = state.start[query], range = max(0, state.end[query] - start);
    const int wanted = min(p.top_k, range);
    const HeldList held(team, list, size);
    const RankedKey threshold = held_threshold(team, held, list, size, wanted, scratch(), select);
    std::uint32_t* room = order_room();
    if (team.rank == 0) select.slot = 0;
    const auto number = [&](RankedKey key, int place) { room[place] = key_index(key) - start; };
    if (barrier_any(team.barrier, team.size, rest.bound > threshold)) {
      const int joined = join_rests(p, plan, shared, lists, list, rests(query), query, threshold);
      const RankedKey least = select_threshold(team, list, joined, wanted, nullptr, 0, select);
      if (team.rank == 0) select.slot = 0;
      team.sync();
      take_keys(team, list, joined, least, kNoKey, select, number);
    } else {
      place_held(held, threshold, &select.slot, number);
      team.sync();
    }
    const int taken = select.slot;
    std::int32_t* out = p.out + (std::int64_t{item.first_query} + query) * p.top_k;
    order_numbers(team, room, kOrderRoom, taken, range, out, select);
#pragma unroll 1
    for (int i = taken + team.rank; i < p.top_k; i += team.size) out[i] = -1;
  }

  // The best k of pieces that have more than they published and may have more of the result: what they
  // kept joins the merged keys. How many these are then.
  static __device__ __noinline__ int join_rests(const IndexTopkCudaParams& p,
                                                const IndexTopkPlan& plan, GroupShared<L>& shared,
                                                const RankedKey* lists, RankedKey* merged,
                                                const PieceRest* rests, int query,
                                                RankedKey threshold) {
    const BlockTeam team = block_team();
    SelectScratch& select = shared.select[query];
    int size = PieceCounters(p, plan).published[shared.item.first_query + query];
#pragma unroll 1
    for (int piece = 0; piece < plan.pieces; ++piece) {
      const PieceRest rest = rests[piece];
      if (rest.bound <= threshold) continue;
      // Pieces of a group are neighbouring blocks'.
      const RankedKey* own =
          lists +
          std::int64_t{(piece - shared.item.piece) * L::kGroupQueries + query} * kCandidateCapacity;
      const RankedKey least =
          max(threshold, select_threshold(team, own, rest.size, p.top_k, nullptr, 0, select));
      if (team.rank == 0) select.slot = size;
      team.sync();
      append_keys(team, own, rest.size, least, rest.bound, merged, select);
      size = select.slot;
      team.sync();
    }
    return size;
  }

  // Where a row is put in order: where the keys were.
  static constexpr int kOrderRoom = sizeof(GroupShared<L>::keys) / 4;
  static_assert(kOrderRoom >= kOrderWords<BlockTeam>);
  __device__ __forceinline__ std::uint32_t* order_room() const {
    return reinterpret_cast<std::uint32_t*>(shared.keys);
  }

  // The last block, when no piece looks any more: the counters as the next call wants them.
  __device__ __forceinline__ void reset() const {
    const int first = item.first_query * plan.pieces;
#pragma unroll 1
    for (int i = team.rank; i < item.queries * plan.pieces; i += team.size) {
      counters.bounds[first + i] = kEveryKey;
    }
    if (team.rank < item.queries) counters.published[item.first_query + team.rank] = 0;
    if (team.rank == 0) counters.arrived[item.group] = 0;
  }
};

}  // namespace indexcache::index_topk_device
