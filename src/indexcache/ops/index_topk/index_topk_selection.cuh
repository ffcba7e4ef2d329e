// An item of a block from its ranges to its rows: thresholds, scan, selection.
#pragma once

#include "indexcache/ops/index_topk/index_topk_candidates.cuh"
#include "indexcache/ops/index_topk/index_topk_pieces.cuh"
#include "indexcache/ops/index_topk/index_topk_seeds.cuh"

namespace indexcache::index_topk_device {

// The scorers' work on one item.
template <class L>
struct GroupSelection {
  static constexpr int kQueries = L::kGroupQueries;

  // Nothing of a group stands in registers: the scan has none to spare.
  const IndexTopkCudaParams& p;
  const IndexTopkPlan& plan;
  GroupShared<L>& shared;
  RingPlace<L::kStages>& place;
  GroupState& state = shared.state;
  const Item& item = shared.item;
  GroupCandidates<L> candidates{p, plan, shared, place};

  static __device__ __forceinline__ void sync() { barrier_sync(kScorersBarrier, kScorers); }
  static __device__ __forceinline__ bool any(bool value) {
    return barrier_any(kScorersBarrier, kScorers, value);
  }

  // Between scans and after them the keys and what is staged make room, at last the queries too.
  __device__ __forceinline__ Room room_beside_queries() const {
    return QueryTeam<L>::share(shared.keys, sizeof shared.keys + sizeof shared.staged);
  }
  __device__ __forceinline__ Room room() const {
    static_assert(GroupShared<L>::kSelectionBytes / 4 / kQueries >= kOrderWords<QueryTeam<L>>);
    return QueryTeam<L>::share(shared.queries, GroupShared<L>::kSelectionBytes);
  }

  // A team: writes its query's row, the best of the list.
  __device__ __forceinline__ void write_row(const QueryTeam<L>& team, const RankedKey* list,
                                            int size) const {
    const int range = candidates.range(team.query);
    const Room free = room();
    SelectScratch& scratch = shared.select[team.query];
    const RankedKey threshold =
        select_threshold(team, list, size, min(p.top_k, range), free.words, free.count, scratch);
    std::int32_t* out = p.out + std::int64_t{item.first_query + team.query} * p.top_k;
    const int start = state.start[team.query];
    write_ordered(team, range, p.top_k, out, free.words, free.count, scratch,
                  [&](const auto& visit) {
                    for_each_key(team, list, size, [&](RankedKey key, bool valid) {
                      if (valid && key >= threshold) visit(key_index(key) - start);
                    });
                  });
  }

  // The scorers: writes the rows of all queries that are not written.
  __device__ __forceinline__ void finish() const {
    const QueryTeam<L> team;
    if (team.query < item.queries && !state.written[team.query]) {
      write_row(team, candidates.lists() + team.query * kCandidateCapacity,
                state.count[team.query]);
    }
  }

  // Reads the ranges; the keys that hold them all.
  __device__ __forceinline__ KeyWalk open_group() const {
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x, query = item.first_query + i;
      const bool real = i < item.queries;
      state.start[i] = real && p.start != nullptr ? max(0, p.start[query]) : 0;
      state.end[i] = real ? min(p.num_keys, p.end[query]) : 0;
      state.threshold[i] = kEveryKey;
      state.count[i] = 0;
      state.settled[i] = false;
      state.written[i] = false;
    }
    sync();
    int first = 0x7FFFFFFF, last = 0;
    for (int i = 0; i < kQueries; ++i) {
      if (candidates.range(i) == 0) continue;
      first = min(first, state.start[i]);
      last = max(last, state.end[i]);
    }
    // From the start of a page on, where there are pages: a warp's 16 keys are then of one page.
    if (L::kPaged) first = first / kPageKeys * kPageKeys;
    return last > first ? KeyWalk{first, last - first} : KeyWalk{};
  }

  // This item's piece of the keys: every pieces-th block of 64, so that no piece has all of a stretch
  // with high scores.
  __device__ __forceinline__ KeyWalk piece_of(KeyWalk keys) const {
    const int blocks = (keys.count + kBlockRows - 1) / kBlockRows;
    const int own = (blocks - item.piece + plan.pieces - 1) / plan.pieces;
    const bool has_last = own > 0 && item.piece + (own - 1) * plan.pieces == blocks - 1;
    const int count = own * kBlockRows - (has_last ? blocks * kBlockRows - keys.count : 0);
    return {keys.first + item.piece * kBlockRows, max(count, 0), (plan.pieces - 1) * kBlockRows};
  }

  // Whether a query's list holds its best keys; if not, it is emptied and takes every key next.
  __device__ __forceinline__ bool settle() const {
    bool again = false;
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x;
      state.settled[i] = state.settled[i] || state.count[i] >= min(p.top_k, candidates.range(i));
      again = !state.settled[i];
      state.threshold[i] = again ? kEveryKey : kNoKey;
      if (again) state.count[i] = 0;
    }
    return !any(again);
  }

  // A piece of the group's keys: what it found is published, and the group's last block writes the rows.
  __device__ __forceinline__ void select_in_pieces(const KeyWalk& keys) const {
    candidates.begin(piece_of(keys));
    candidates.scores.stage_queries();
    candidates.scores.stage_weights();
    sync();
    candidates.scan();
    const PieceMerge<L> merge{p, plan, shared, candidates.lists()};
#pragma unroll 1
    for (int i = 0; i < item.queries; ++i) merge.publish(i);
    merge.arrive();
#pragma unroll 1
    for (int i = 0; i < item.queries; ++i) {
      if (state.last[i]) merge.write_row(i);
    }
  }

  // The keys that seeds name, or none.
  __device__ __forceinline__ KeyWalk seeded_keys(const KeyWalk& keys) const {
    if (p.seeds == nullptr) return {};
    // Their scores fill the lists up to kMostSampled.
    static_assert((kCandidateCapacity - kMostSampled - 1) * 2 >= kMostSampled);
    auto* listed = reinterpret_cast<int*>(candidates.lists() + kMostSampled + 1);
    return list_seeds<L>(p, item, state, keys, kMostSampled, listed,
                         reinterpret_cast<std::uint32_t*>(shared.keys), sizeof shared.keys / 4,
                         shared.select[0]);
  }

  // From the keys to the rows of the result. Rounds: the seeds; where they name too few or too many,
  // the sample; the scan; where the sample misled, a scan that takes every key.
  __device__ __forceinline__ void select(const KeyWalk& keys) const {
    enum Round { kSeeds, kSample, kScan, kEvery };
    Round round = kScan;
    KeyWalk first = keys;
    if (keys.count > kShortRange) {
      first = seeded_keys(keys);
      round = first.count > 0 ? kSeeds : kSample;
      if (round == kSample) first = sampled_keys(keys);
    }
    if (threadIdx.x == 0) shared.range = keys;
    candidates.begin(first);
    candidates.scores.stage_queries();
    candidates.scores.stage_weights();
    sync();
    for (;;) {
      candidates.scan();
      const KeyWalk all = shared.range;
      const int scored = shared.walk.count;
      if (round == kSeeds) {
        const bool found = candidates.choose_thresholds(
            scored, room_beside_queries(),
            [&](int query) { return candidates.range(query) > kShortRange ? p.top_k : 0; });
        if (!found && threadIdx.x < kQueries) state.threshold[threadIdx.x] = kEveryKey;
        candidates.begin(found ? all : sampled_keys(all));
        round = found ? kScan : kSample;
      } else if (round == kSample) {
        candidates.choose_thresholds(scored, room_beside_queries(), [&](int query) {
          return candidates.rank_in_sample(query, scored, all.count);
        });
        candidates.begin(all);
        round = kScan;
      } else if (settle()) {
        break;
      } else {
        candidates.begin(all);
        round = kEvery;
      }
    }
    finish();
  }

  // The rows of queries that have no keys.
  __device__ __forceinline__ void write_nothing() const {
    std::int32_t* out = p.out + std::int64_t{item.first_query} * p.top_k;
    for (int i = threadIdx.x; i < item.queries * p.top_k; i += kScorers) out[i] = -1;
  }

  // A block's item: a group of queries, or a piece of its keys.
  __device__ __forceinline__ void run(const Item& next) const {
    if (threadIdx.x == 0) shared.item = next;
    sync();
    const KeyWalk keys = open_group();
    if (keys.count == 0) {
      if (item.piece == 0) write_nothing();
    } else if constexpr (L::kInPieces) {
      select_in_pieces(keys);
    } else {
      select(keys);
    }
    sync();  // the next item changes the state
  }
};

}  // namespace indexcache::index_topk_device
