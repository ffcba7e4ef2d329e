// Few groups of queries: the key range of each in pieces, a block each. The pieces take one threshold from
// the sample that all of them scored; each then has the keys that reach it in its list. The block that
// comes last selects from all lists, and walks all keys itself if the sample misled.
#pragma once

#include "indexcache/ops/index_topk/index_topk_candidates.cuh"
#include "indexcache/ops/index_topk/index_topk_runs.cuh"

namespace indexcache::index_topk_device {

// A scorer's row of its piece's part of the sample, if it has one: a stream's are fetched by a warpgroup that scores it,
// to the stage behind its first runs.
template <class L>
struct SampleRow {
  static constexpr int kThreads = kWarpgroup / kBlockRows, kUnits = L::kRow / 16 / kThreads;
  const std::uint8_t* from = nullptr;
  const void* scale = nullptr;

  static __device__ __forceinline__ int thread() {
    return static_cast<int>(threadIdx.x) % kWarpgroup;
  }
  static __device__ __forceinline__ int row() { return thread() / kThreads; }
  static __device__ __forceinline__ int place(const SamplePart& sample) {
    return sample.first + L::block() * kBlockRows + row();
  }

  // Asks for where it is.
  __device__ __forceinline__ SampleRow(const IndexTopkCudaParams& p, const Item& item,
                                       const SamplePart& sample) {
    if (L::part() != 0 || place(sample) >= sample.walk.count) return;
    const int key = sample.walk.scattered_key(place(sample));
    if (L::kPaged) {
      const std::uint8_t* page = page_of_key(p, p.tokens_per_request > 0 ? item.group : 0, key);
      from = page + key % kPageKeys * L::kRow;
      scale = page + kPageScales + key % kPageKeys * 4;
    } else {
      from = static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
      if (L::Format::kHasScale) scale = p.key_scale + key;
    }
  }
  // Once barriers may be used: asks for the row, and tells who waits for the stage and for the sample.
  __device__ __forceinline__ void fetch(const SamplePart& sample, const StreamRuns& runs,
                                        GroupShared<L>& shared) const {
    if (L::part() != 0) return;
    static_assert(L::kStages > 2);
    const int stream = L::block(), stage = runs_before_sample(runs);
    if (from != nullptr) {
      const std::uint32_t to = shared_address(shared.keys[stage]) + stream * L::kBlockBytes;
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        const int unit = thread() % kThreads * kUnits + i;
        copy_16(to + unit / 8 * (kBlockRows * 128) + swizzled_offset(row(), unit % 8),
                from + unit * 16, true);
      }
      if (L::Format::kHasScale && thread() % kThreads == 0) {
        copy_4(shared_address(&shared.scales[stage][stream * kBlockRows + row()]), scale);
      }
    }
    mbarrier_arrive_after_copies(&shared.sample_there[stream]);
    if (thread() == 0) {
      shared.run[stage][stream] = place(sample) | kSampleRun | (runs.own == stage ? kLastRun : 0u);
      mbarrier_arrive(&shared.full[stage][stream]);
    }
  }
};

// The scorers of a piece. All of them work on a query, one query after the other: what is selected from then
// stands in their registers.
template <class L>
struct PieceSelection {
  const IndexTopkCudaParams& p;
  const IndexTopkPlan& plan;
  GroupShared<L>& shared;
  const GroupCandidates<L>& candidates;
  const Item& item = shared.item;
  GroupState& state = shared.state;

  __device__ __forceinline__ RankedKey* own_list(int query) const {
    return candidates.lists() + query * kCandidateCapacity;
  }
  // A query's list of another piece, from this one's. The pieces of a group are neighbouring blocks'.
  static __device__ __forceinline__ const RankedKey* list_of(int piece, int own_piece,
                                                             const RankedKey* own) {
    return own + std::int64_t{piece - own_piece} * L::kGroupQueries * kCandidateCapacity;
  }

  // How long a piece waits for the samples of the others. They come within microseconds, unless their blocks
  // have no multiprocessor yet, which may be for as long as other work takes.
  static constexpr long long kPatience = 50'000;  // cycles

  // The keys of the group's sample from `first` on, to the team's registers. Whether all of them came in time.
  using HeldSample = HeldKeys<BlockTeam, kMostShared / kScorers>;
  __device__ __forceinline__ bool hold_sample(const BlockTeam& team, const KeyWalk& sample,
                                              int query, int first, HeldSample& held) const {
    constexpr int kEach = kMostShared / kScorers;
    const SampleSlot* slots = sample_slots(p, plan, item.first_query + query);
    const long long since = clock64();
    bool missing;
    const unsigned tag = shared.tag;
    do {
      missing = false;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = first + i * kScorers + team.rank;
        held.keys[i] = read_slot(slots + min(at, kMostShared - 1));
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = first + i * kScorers + team.rank;
        missing |= (at < sample.count) & (static_cast<unsigned>(held.keys[i]) != tag);
      }
    } while (missing && clock64() - since < kPatience);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = first + i * kScorers + team.rank;
      const auto index = static_cast<std::uint32_t>(sample.scattered_key(at));
      held.keys[i] = at < sample.count ? held.keys[i] >> 32 << 32 | ~index : kEveryKey;
    }
    return !barrier_any(team.barrier, team.size, missing);
  }

  // Thresholds from the sample of all pieces; where one does not come in time, from this piece's own part of it.
  __device__ __forceinline__ void choose_thresholds(const KeyWalk& keys) const {
    const BlockTeam team = block_team();
    const KeyWalk all = sample_of_group<L>(keys, plan.pieces);
#pragma unroll 1
    for (int query = 0; query < queries_of_piece<L>(item); ++query) {
      int size = all.count, wanted = state.sample_rank[query];
      HeldSample held(size);
      if (!hold_sample(team, all, query, 0, held)) {
        const SamplePart own = sample_of_piece<L>(keys, item.piece, plan.pieces);
        size = own.walk.count - own.first;
        held = HeldSample(size);
        hold_sample(team, own.walk, query, own.first, held);
        wanted = candidates.rank_in_sample(query, size, keys.count);
      }
      if (wanted == 0) continue;
      const auto found = select_held(team, held, size, wanted, wanted / 8, shared.held_select,
                                     [](RankedKey, bool) {});
      if (team.rank == 0) state.threshold[query] = found.threshold;
    }
    team.sync();
  }

  // What this piece has found. Returns whether it is the last of its group.
  __device__ __forceinline__ bool comes_last() const {
    const BlockTeam team = block_team();
    if (team.rank < item.queries) {
      const int query = team.rank;
      candidates.record(query, state.count[query], 0);
      piece_lists(p, plan, item.first_query + query)[item.piece] = {state.threshold[query],
                                                                    state.count[query]};
    }
    team.sync();
    if (team.rank == 0) {
      GroupCounters* counters = group_counters(p, item.group);
      unsigned before;  // with what the others have written, and after what this block's have
      asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(__cvta_generic_to_global(&counters->done))
                   : "memory");
      shared.is_last = static_cast<int>(before) + 1 == plan.pieces;
      if (shared.is_last) *counters = {shared.calls + 1, 0, 0};
    }
    clear_order(team, 0);  // the others need not wait for it
    team.sync();
    return shared.is_last;
  }

  // The last piece: the rows of the queries whose samples did not mislead. Whether that is all.
  __device__ __forceinline__ bool write_rows() const {
    bool all = true;
#pragma unroll 1
    for (int query = 0; query < queries_of_piece<L>(item); ++query) {
      const bool written = write_row(query);
      if (threadIdx.x == 0) state.written[query] = written;
      all = all && written;
    }
    return all;
  }

  __device__ __forceinline__ int range_of(int query) const {
    return max(0, state.end[query] - state.start[query]);
  }
  __device__ __forceinline__ void clear_order(const BlockTeam& team, int query) const {
    Order(merge_room().words, range_of(query)).clear(team);
  }

  // A query's row from all lists. False where it would be wrong. For the first query the room is cleared.
  __device__ __forceinline__ bool write_row(int query) const {
    const BlockTeam team = block_team();
    static_assert(kMostPieces < kScorers);
    SelectScratch& select = shared.select[query];
    const PieceList* lists = piece_lists(p, plan, item.first_query + query);
    const PieceList own = team.rank < plan.pieces ? lists[team.rank] : PieceList{};
    if (query > 0) clear_order(team, query);
    const TeamSum sizes = sum_before(team, static_cast<unsigned>(own.size), false, select);
    int first = static_cast<int>(sizes.before), size = static_cast<int>(sizes.all);
    if (size > kCandidateCapacity) {
      team.sync();
      size = join_lists(p, plan, shared, candidates.lists(), query);
      first = team.rank <= item.piece ? 0 : size;
    }
    const MergeRoom room = merge_room();
    if (team.rank <= kMostPieces) room.first[team.rank] = first;
    team.sync();
    gather(team, query);
    const int start = state.start[query], range = range_of(query), wanted = min(p.top_k, range);
    if (size < wanted) return false;
    const HeldList held(team, room.list, size);
    const Order order(room.words, range);
    const auto [threshold, marked] =
        select_held(team, held, size, wanted, 0, shared.held_select,
                    [&](RankedKey key, bool there) { order.mark(key_index(key) - start, there); });
    write_ordered(team, order, marked, range, p.top_k,
                  p.out + (std::int64_t{item.first_query} + query) * p.top_k, select,
                  [&](const auto& visit) {
                    held.for_each([&](RankedKey key, bool present) {
                      visit(key_index(key) - start, present & (key >= threshold));
                    });
                  });
    // The least key of the row may lie above the threshold that was found for it.
    if (barrier_any(team.barrier, team.size, own.bound > threshold)) {
      Extremes<RankedKey> row;
      held.for_each([&](RankedKey key, bool present) {
        if (present & (key >= threshold)) row.add({key, key});
      });
      const RankedKey least = join(team, row, select).low;
      if (barrier_any(team.barrier, team.size, own.bound > least)) return false;
    }
    return true;
  }
  // So that no later call takes it for its own.
  __device__ __forceinline__ void clear_sample(const BlockTeam& team, int query) const {
    SampleSlot* slots = sample_slots(p, plan, item.first_query + query);
#pragma unroll 1
    for (int i = team.rank; i < kMostShared; i += team.size) slots[i] = 0;
  }

  // The keys of all lists, one list after the other, in shared memory. As many threads as there are for each list.
  __device__ __forceinline__ void gather(const BlockTeam& team, int query) const {
    static_assert(kMostPieces < kScorers);
    const MergeRoom room = merge_room();
    const int log_lists = 32 - __clz(plan.pieces - 1), log = kLogScorers - log_lists,
              lists = 1 << log_lists;
#pragma unroll 1
    for (int piece = team.rank >> log; piece < plan.pieces; piece += lists) {
      const RankedKey* list = list_of(piece, item.piece, own_list(query));
      const int from = room.first[piece], size = room.first[piece + 1] - from;
      const std::uint32_t to = shared_address(room.list + from);
#pragma unroll 4
      for (int i = team.rank & ((1 << log) - 1); i < size; i += 1 << log) {
        copy_8(to + i * 8, list + i);
      }
    }
    if (shared.range.count > kShortRange) clear_sample(team, query);
    wait_for_copies();
    team.sync();
  }

  // Where lists are joined and a row is put in order: where queries, keys and staged scores were.
  using Order = OrderRoom<BlockTeam>;
  struct MergeRoom {
    RankedKey* list;
    std::uint32_t* words;
    int* first;  // of a piece's keys in the list
  };
  __device__ __forceinline__ MergeRoom merge_room() const {
    constexpr int kListBytes = kCandidateCapacity * 8;
    static_assert(sizeof shared.queries + sizeof shared.keys >=
                  kListBytes + 4 * kOrderWords<BlockTeam>);
    static_assert(sizeof shared.staged > 4 * kMostPieces);
    auto* room = reinterpret_cast<std::uint8_t*>(&shared);
    static_assert(offsetof(GroupShared<L>, queries) == 0 &&
                  offsetof(GroupShared<L>, keys) == sizeof shared.queries);
    return {reinterpret_cast<RankedKey*>(room), reinterpret_cast<std::uint32_t*>(room + kListBytes),
            reinterpret_cast<int*>(shared.staged)};
  }

  // More than a list's keys in all lists: the best k of each to this block's, which is cut where it would not
  // hold them. Returns its size.
  static __device__ __noinline__ int join_lists(const IndexTopkCudaParams& p,
                                                const IndexTopkPlan& plan, GroupShared<L>& shared,
                                                RankedKey* block_lists, int query) {
    const BlockTeam team = block_team();
    const Item& item = shared.item;
    SelectScratch& select = shared.select[query];
    const PieceList* lists = piece_lists(p, plan, item.first_query + query);
    RankedKey* joined = block_lists + query * kCandidateCapacity;
    int size = lists[item.piece].size;
#pragma unroll 1
    for (int piece = 0; piece < plan.pieces; ++piece) {
      if (piece == item.piece) continue;
      const int more = lists[piece].size;
      if (size + min(more, p.top_k) > kCandidateCapacity) {
        const RankedKey least = select_threshold(team, joined, size, p.top_k, nullptr, 0, select);
        size = compact(team, joined, size, least, select);
      }
      const RankedKey* list = list_of(piece, item.piece, joined);
      const RankedKey least = select_threshold(team, list, more, p.top_k, nullptr, 0, select);
      if (team.rank == 0) select.slot = size;
      team.sync();
      append_keys(team, list, more, least, kNoKey, joined, select);
      size = select.slot;
      team.sync();
    }
    return size;
  }
};

}  // namespace indexcache::index_topk_device
