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

  __device__ __forceinline__ bool publishes_all(int query) const {
    return state.count[query] <= min(p.top_k, kCandidateCapacity / plan.pieces);
  }
  __device__ __forceinline__ int keys_published(int query) const {
    return publishes_all(query) ? state.count[query] : plan.quota;
  }

  // A query's keys to their places among the merged. What all pieces publish fits a list.
  __device__ __forceinline__ void publish(int query) const {
    const BlockTeam team = block_team();
    SelectScratch& select = shared.select[query];
    const int size = state.count[query], wanted = keys_published(query);
    int first = 0;
    if (team.rank == 0) {
      first = atomicAdd(&counters.published[item.first_query + query], wanted);
    }
    const RankedKey* list = lists + query * kCandidateCapacity;
    const HeldList held(team, list, size);
    const RankedKey threshold =
        publishes_all(query) ? kEveryKey
                             : held_threshold(team, held, list, size, wanted, scratch(), select);
    if (team.rank == 0) {
      select.slot = first;
      rests(query)[item.piece] = {threshold, size};
    }
    team.sync();
    RankedKey* to = merged(query);
    if (threshold == kEveryKey) {
      held.copy(team, to + select.slot, size);
    } else {
      place_held(held, threshold, &select.slot, [&](RankedKey key, int place) { to[place] = key; });
    }
  }

  // Finds out of which queries this piece is the last. The barriers carry what one thread orders to and
  // from the others.
  __device__ __forceinline__ void arrive() const {
    const BlockTeam team = block_team();
    team.sync();
    if (team.rank < item.queries) {
      const int query = team.rank, own = keys_published(query);
      unsigned long long before;
      asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], %2;"
                   : "=l"(before)
                   : "l"(__cvta_generic_to_global(counters.arrived + item.first_query + query)),
                     "l"(1ull << 32 | static_cast<unsigned>(own))
                   : "memory");
      state.last[query] = static_cast<int>(before >> 32) + 1 == plan.pieces;
      state.published[query] = static_cast<int>(static_cast<unsigned>(before)) + own;
    }
    team.sync();
  }

  // A query's last block: its row from what the pieces published. A piece of which all went into the
  // result may have more: its best k then join, still in its block's list. Leaves the counters zero.
  __device__ __forceinline__ void write_row(int query) const {
    const BlockTeam team = block_team();
    static_assert(kMostPieces <= kScorers);
    SelectScratch& select = shared.select[query];
    const std::int64_t row = item.first_query + query;
    RankedKey* list = merged(query);
    const int start = state.start[query], range = max(0, state.end[query] - start);
    const int size = state.published[query], wanted = min(p.top_k, range);
    const HeldList held(team, list, size);
    const PieceRest rest = team.rank < plan.pieces ? rests(query)[team.rank] : PieceRest{};
    if (team.rank < plan.pieces) counters.bounds[row * plan.pieces + team.rank] = kEveryKey;
    if (team.rank == 0) {
      counters.arrived[row] = 0;
      counters.published[row] = 0;
    }
    const Order order = order_room(shared, range);
    order.clear(team);
    const RankedKey threshold = held_threshold(team, held, list, size, wanted, scratch(), select);
    if (barrier_any(team.barrier, team.size, rest.bound > threshold)) {
      return join_rests(p, plan, shared, lists, list, rests(query), query, threshold);
    }
    write_ordered(
        team, order, range, p.top_k, p.out + row * p.top_k, select, [&](const auto& visit) {
          held.for_each([&](RankedKey key) { visit(key_index(key) - start, key >= threshold); });
        });
  }

  // The same where pieces that have more than they published may have more of the result: the best k
  // that they kept join the merged keys.
  static __device__ __noinline__ void join_rests(const IndexTopkCudaParams& p,
                                                 const IndexTopkPlan& plan, GroupShared<L>& shared,
                                                 const RankedKey* lists, RankedKey* merged,
                                                 const PieceRest* rests, int query,
                                                 RankedKey threshold) {
    const BlockTeam team = block_team();
    const GroupState& state = shared.state;
    SelectScratch& select = shared.select[query];
    int size = state.published[query];
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
    const int start = state.start[query], range = max(0, state.end[query] - start);
    const RankedKey least =
        select_threshold(team, merged, size, min(p.top_k, range), nullptr, 0, select);
    write_ordered(team, order_room(shared, range), range, p.top_k,
                  p.out + (std::int64_t{shared.item.first_query} + query) * p.top_k, select,
                  [&](const auto& visit) {
                    for_each_key(team, merged, size, [&](RankedKey key, bool valid) {
                      visit(key_index(key) - start, valid && key >= least);
                    });
                  });
  }

  // Where a row is put in order: where the keys were.
  using Order = OrderRoom<BlockTeam>;
  static_assert(sizeof(GroupShared<L>::keys) / 4 >= kOrderWords<BlockTeam>);
  static __device__ __forceinline__ Order order_room(GroupShared<L>& shared, int range) {
    return Order(reinterpret_cast<std::uint32_t*>(shared.keys), range);
  }
};

}  // namespace indexcache::index_topk_device
