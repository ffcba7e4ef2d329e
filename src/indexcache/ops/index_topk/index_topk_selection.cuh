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
    const int start = state.start[team.query], range = candidates.range(team.query);
    const Room free = room();
    SelectScratch& scratch = shared.select[team.query];
    const RankedKey threshold =
        select_threshold(team, list, size, min(p.top_k, range), free.words, free.count, scratch);
    const OrderRoom<QueryTeam<L>> order(free.words, range);
    order.clear(team);
    team.sync();
    write_ordered(team, order, false, range, p.top_k,
                  p.out + std::int64_t{item.first_query + team.query} * p.top_k, scratch,
                  [&](const auto& visit) {
                    for_each_key(team, list, size, [&](RankedKey key, bool valid) {
                      visit(key_index(key) - start, valid & (key >= threshold));
                    });
                  });
  }

  // The scorers: writes the rows of all queries that are not written.
  __device__ __forceinline__ void finish() const {
    const QueryTeam<L> team;
    if (team.query < item.queries && !state.written[team.query]) {
      const int size = state.count[team.query];
      if (team.rank == 0) candidates.record(team.query, size, 0);
      write_row(team, candidates.lists() + team.query * kCandidateCapacity, size);
    }
  }

  // The state of a group that nothing is known of but its ranges.
  __device__ __forceinline__ void open(const Item& next) const {
    if (threadIdx.x == 0) shared.item = next;
    if (threadIdx.x >= kQueries) return;
    const int i = threadIdx.x;
    const KeyRange range = i < next.queries ? range_of(p, next.first_query + i) : KeyRange{};
    state.start[i] = range.start;
    state.end[i] = range.end;
    state.threshold[i] = kEveryKey;
    state.count[i] = 0;
    state.settled[i] = false;
    state.written[i] = false;
  }

  // Whether a query's list holds its best keys; if not, it is emptied and takes every key next.
  __device__ __forceinline__ bool settle() const {
    bool again = false;
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x;
      state.settled[i] = state.settled[i] || state.count[i] >= min(p.top_k, candidates.range(i));
      again = !state.settled[i];
      state.threshold[i] = again ? kEveryKey : kNoKey;
      if (again) {
        candidates.record(i, state.count[i], 1);
        state.count[i] = 0;
      }
    }
    return !any(again);
  }

  // A piece: its part of the sample, then its share of the keys; the last one of a group writes the rows.
  // Queries, weights and sample are asked for before anything else, as later they would wait for keys.
  __device__ __forceinline__ void run_piece(const Item& next) const {
    unsigned calls = 0;
    if (threadIdx.x == 0) calls = group_counters(p, next.group)->calls;
    candidates.scores.stage_weights(next);
    candidates.scores.stage_queries(next);
    const KeyWalk keys = keys_of_group<L>(p, next);
    const bool sampled = keys.count > kShortRange;
    const StreamRuns runs = piece_runs<L>(keys, next.piece, plan.pieces, L::block(), nullptr);
    const SamplePart sample =
        sampled ? sample_of_piece<L>(keys, next.piece, plan.pieces) : SamplePart{};
    const SampleRow<L> row(p, next, sample);
    open(next);
    if (threadIdx.x == 0) {
      shared.range = keys;
      shared.walk = sample.walk;
      shared.calls = calls;
      shared.tag = call_tag(calls, next.group);
    }
    if (sampled && threadIdx.x < kQueries) {
      const int i = threadIdx.x;
      const int size = sample_of_group<L>(keys, plan.pieces).count;
      state.sample_rank[i] = candidates.rank_in_sample(i, size, keys.count);
    }
    candidates.scores.wait_for_operands();
    barrier_sync(kScanBarrier, kThreads);
    if (keys.count == 0) {
      if (next.piece == 0) write_nothing();
      return;
    }
    if (sampled) row.fetch(sample, runs, shared);
    const PieceSelection<L> piece{p, plan, shared, candidates};
    bool chosen = !sampled, again = false, ended = !sampled && runs.own == 0;
    for (;;) {
      std::uint32_t end = candidates.staged();
      if (!ended) ended = candidates.scan_stream(end);
      // Scores are staged without thresholds while the others' samples are on their way.
      if (!chosen) piece.choose_thresholds(shared.range);
      chosen = true;
      candidates.append_staged(end);
      if (!ended && !candidates.any_of_warpgroup(candidates.a_list_is_full())) continue;
      if (any(!ended)) {
        candidates.cut_lists();
        continue;
      }
      if (again) return finish();
      again = piece.comes_last() && !piece.write_rows();
      if (again) [[unlikely]]
        take_every_key();
      if (threadIdx.x == 0) {
        shared.again = again;
        mbarrier_arrive(&shared.walk_given);
      }
      if (!again) [[likely]]
        return;
      ended = false;
    }
  }
  // Before a walk for the rows that are not written.
  __device__ __forceinline__ void take_every_key() const {
    sync();
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x;
      state.settled[i] = i >= item.queries || state.written[i];
      state.threshold[i] = state.settled[i] ? kNoKey : kEveryKey;
      state.count[i] = 0;
      if (!state.settled[i]) candidates.record(i, 0, 1);
    }
    candidates.scores.stage_queries(item);  // in whose room the lists were joined, as in the keys'
    candidates.scores.wait_for_operands();
    sync();
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
    using Reached = typename GroupCandidates<L>::Reached;
    Round round = kScan;
    KeyWalk first = keys;
    if (keys.count > kShortRange) {
      first = seeded_keys(keys);
      round = first.count > 0 ? kSeeds : kSample;
      if (round == kSample) first = sampled_keys(keys, L::kSampleShare);
    }
    if (threadIdx.x == 0) shared.range = keys;
    candidates.begin(first);
    candidates.scores.stage_queries(item);
    candidates.scores.stage_weights(item);
    candidates.scores.wait_for_operands();
    sync();
    for (;;) {
      candidates.scan();
      const KeyWalk all = shared.range;
      const int scored = shared.walk.count;
      if (round == kSeeds) {
        const bool found = candidates.template choose_thresholds<Reached::kLeast>(
            scored, room_beside_queries(),
            [&](int query) { return candidates.range(query) > kShortRange ? p.top_k : 0; });
        if (!found && threadIdx.x < kQueries) state.threshold[threadIdx.x] = kEveryKey;
        candidates.begin(found ? all : sampled_keys(all, L::kSampleShare));
        round = found ? kScan : kSample;
      } else if (round == kSample) {
        candidates.template choose_thresholds<Reached::kAny>(
            scored, room_beside_queries(),
            [&](int query) { return candidates.rank_in_sample(query, scored, all.count); });
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

  // A group.
  __device__ __forceinline__ void run(const Item& next) const {
    const KeyWalk keys = keys_of_group<L>(p, next);
    open(next);
    sync();
    if (keys.count > 0) {
      select(keys);
    } else {
      write_nothing();
    }
    sync();  // the next item changes the state
  }
};

}  // namespace indexcache::index_topk_device
