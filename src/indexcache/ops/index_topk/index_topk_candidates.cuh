// The candidates of a group of queries: a scan of keys that appends those whose scores reach the
// queries' thresholds, and where the thresholds come from.
#pragma once

#include "indexcache/ops/index_topk/index_topk_scores.cuh"

namespace indexcache::index_topk_device {

template <class L>
struct GroupCandidates {
  static constexpr int kQueries = L::kQueries, kOwn = L::kOwn, kSums = L::kSums;
  static constexpr bool kFewQueries = kQueries <= 2;  // thresholds then leave the keys' room alone
  static constexpr int kUnits = L::kUnits, kRowBlocks = L::kRowBlocks;

  const IndexTopkCudaParams& p;
  Item item;
  GroupShared<L>& shared;
  RankedKey* lists;              // [kQueries][kCandidateCapacity]
  RingPlace<L::kStages>& place;  // of the next tile
  GroupScores<L> scores{p, item, shared};

  // This lane's staged scores: every 32nd of the warp's.
  __device__ __forceinline__ std::uint32_t staged() const {
    return shared_address(&shared.staged[threadIdx.x / 32][0][threadIdx.x % 32]);
  }
  static constexpr int kStagedStride = 32 * sizeof(StagedScore);

  // A warp: the next place in the query's list, for the lanes that want one.
  __device__ __forceinline__ int take_slot(int query, bool wanted) const {
    int* counts = shared.state.count;
    if constexpr (!kFewQueries) return wanted ? atomicAdd(&counts[query], 1) : 0;
    // Few counters, where lanes would wait for each other: one addition a warp.
    int slot = 0;
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      const unsigned takers = __ballot_sync(kAllLanes, wanted && query == i);
      if (takers == 0) continue;
      int from = 0;
      if (threadIdx.x % 32 == 0) from = atomicAdd(&counts[i], __popc(takers));
      from = __shfl_sync(kAllLanes, from, 0);
      if (query == i) slot = from + __popc(takers & ((1u << threadIdx.x % 32) - 1));
    }
    return slot;
  }

  // A warp: what its lanes staged, up to `end`, and what reaches the thresholds goes to the lists.
  // `first` is the place in the walk where places count from.
  __device__ __forceinline__ void append_staged(int first, std::uint32_t end) const {
    const GroupState& state = shared.state;
    const KeyWalk walk = shared.walk;
    const bool sampling = walk.stratum != 0;
    for (std::uint32_t from = staged(); __any_sync(kAllLanes, from < end); from += kStagedStride) {
      StagedScore s{};
      if (from < end) s = load_staged(from);
      const int query = s.query_and_place >> 16;
      const int at = first + static_cast<int>(s.query_and_place & 0xFFFF);
      const bool present = from < end && at < walk.count;
      const int index = walk.key(at);
      const bool inside = present && index >= state.start[query] && index < state.end[query];
      const RankedKey key = ranked_key(s.score, index);
      RankedKey* list = lists + query * kCandidateCapacity;
      if (inside && p.scores != nullptr) {
        p.scores[std::int64_t{item.first_query + query} * p.num_keys + index] = s.score;
      }
      if (sampling) {  // a place for every key
        if (present) list[at] = inside ? key : RankedKey{0};
      } else {
        const bool wanted = inside && key >= state.threshold[query];
        const int slot = take_slot(query, wanted);
        if (wanted) list[slot] = key;
      }
    }
  }
  static __device__ __forceinline__ StagedScore load_staged(std::uint32_t from) {
    StagedScore s;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=f"(s.score), "=r"(s.query_and_place)
                 : "r"(from)
                 : "memory");
    return s;
  }

  __device__ __forceinline__ void load_floors(float (&floor)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      floor[i] = threshold_score(shared.state.threshold[L::column_query(threadIdx.x % 4, i)]);
      if (p.scores != nullptr) floor[i] = __uint_as_float(0x7FFFFFFFu);  // all are to be seen
    }
  }

  // The scorers: whether a list may overflow before the next look.
  __device__ __forceinline__ bool some_list_is_full() const {
    const int i = threadIdx.x;
    return barrier_any(
        0, kScorers,
        i < kQueries && shared.state.count[i] > kCandidateLimit && !shared.state.settled[i]);
  }

  // The scorers: cuts those lists to the best k, whose least becomes the threshold.
  __device__ void cut_lists() const {
    GroupState& state = shared.state;
    const int warp = threadIdx.x / 32;
    if (warp < kQueries && state.count[warp] > kCandidateLimit && !state.settled[warp]) {
      RankedKey* list = lists + warp * kCandidateCapacity;
      const int size = state.count[warp];
      const RankedKey threshold =
          select_threshold(WarpTeam{}, list, size, p.top_k, shared.select[warp]);
      const int kept = compact(list, size, threshold);
      if (threadIdx.x % 32 == 0) {
        state.count[warp] = kept;
        state.threshold[warp] = threshold;
      }
    }
    BlockTeam<kScorers>{}.sync();
  }

  __device__ __forceinline__ void wait_for_tile(const RingPlace<L::kStages>& at) const {
    mbarrier_wait(&shared.full[at.stage], at.parity);
  }

  // A lane: stages the scores of its rows of a tile that reach the thresholds' scores. place is where
  // the tile is since the last look, end that of what is staged.
  static __device__ __forceinline__ void stage_tile(const float (&sums)[kRowBlocks][2][kOwn][kSums],
                                                    const float (&scale)[kRowBlocks][2],
                                                    const float (&floor)[kOwn], std::uint32_t place,
                                                    std::uint32_t& end) {
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i) {
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const float score = GroupScores<L>::total(sums[i / 2][i % 2][own]) * scale[i / 2][i % 2];
        if (!GroupScores<L>::offers(i % 2) || score < floor[own]) continue;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(end), "f"(score),
                     "r"(place + (own << 16) + i / 2 * kBlockRows + i % 2 * 8)
                     : "memory");
        end += kStagedStride;
      }
    }
  }

  // The scorers: scores tiles from `tile` on and appends candidates until the walk ends or a list
  // is full. Returns the next tile. The two warpgroups go their own ways between looks.
  __device__ __forceinline__ int scan_until_full(int tiles, int tile) const {
    float weights[L::kWeights], floor[kOwn];
    scores.load_weights(weights);
    load_floors(floor);
    const std::uint32_t queries = scores.queries_operand(), keys = scores.keys_operand();
    const int row = GroupScores<L>::first_row(0);
    const std::uint32_t first_place = L::column_query(threadIdx.x % 4, 0) << 16 | row;
    const float* scales = shared.scales[0] + row;
    const bool arrives = threadIdx.x % 32 == 0;
    int look_first = tile * L::kTileKeys, stop = min(tile + L::kTilesPerLook, tiles);
    const std::uint32_t empty = staged();
    const std::uint32_t room_ends = empty + (L::kStaged - L::kMostStaged) * kStagedStride;
    std::uint32_t end = empty;
    std::uint32_t where = first_place;
    const int warpgroup = __shfl_sync(kAllLanes, threadIdx.x / kWarpgroup, 0);
    const auto pass_turn = [&](bool now) {
      if (now) barrier_arrive(kTurnBarrier + 1 - warpgroup, kScorers);
    };
    pass_turn(kTurns != Turns::kNone && warpgroup == 1);
    for (;;) {
#pragma unroll 1
      for (; tile < stop && !__any_sync(kAllLanes, end > room_ends); ++tile) {
        float d[kUnits][L::kColumns / 2];
        const std::uint32_t a = keys + place.stage * (L::kKeyBytes / 16);
        wait_for_tile(place);
        if (kTurns != Turns::kNone) barrier_sync(kTurnBarrier + warpgroup, kScorers);
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          GroupScores<L>::multiply(unit, __shfl_sync(kAllLanes, a, 0), queries, d[unit]);
        }
        pass_turn(kTurns == Turns::kStarted);
        float scale[kRowBlocks][2];
#pragma unroll
        for (int i = 0; i < 2 * kRowBlocks; ++i) {
          const float* at = scales + place.stage * L::kTileKeys + i / 2 * kBlockRows + i % 2 * 8;
          scale[i / 2][i % 2] = L::Format::kHasScale ? *at : 1.0f;
        }
        float sums[kRowBlocks][2][kOwn][kSums] = {};
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          if (unit + 1 < kUnits) {
            wgmma_wait<1>();
          } else {
            wgmma_wait<0>();
          }
          pass_turn(kTurns == Turns::kFirstFinished && unit == 0);
          pass_turn(kTurns == Turns::kFinished && unit + 1 == kUnits);
          wgmma_pin(d[unit]);
          __syncwarp();
          if (unit + 1 == kUnits && arrives) mbarrier_arrive(&shared.empty[place.stage]);
          scores.reduce(unit % L::kBanks, d[unit], weights, sums[unit / L::kBanks]);
        }
        stage_tile(sums, scale, floor, where, end);
        place = place.next();
        where += L::kTileKeys;
      }
      append_staged(look_first, end);
      end = empty;
      if (tile < stop) continue;
      if (some_list_is_full() || tile == tiles) break;
      look_first = tile * L::kTileKeys;
      stop = min(tile + L::kTilesPerLook, tiles);
      where = first_place;
    }
    if (kTurns != Turns::kNone && warpgroup == 0) barrier_sync(kTurnBarrier, kScorers);
    return tile;
  }

  // The scorers: has the fetchers start on the keys of a walk, which scan() is called for next.
  __device__ __forceinline__ void begin(const KeyWalk& walk) const {
    if (walk.count == 0) return;
    if (threadIdx.x == 0) {
      shared.walk = walk;
      shared.item = item;
    }
    fence_for_wgmma();  // what selections left in the keys' room, before tensor copies write there
    barrier_sync(kScanBarrier, kThreads);
  }

  // The scorers: scores the keys of the walk and appends candidates.
  __device__ __forceinline__ void scan(const KeyWalk& walk) const {
    const int tiles = (walk.count + L::kTileKeys - 1) / L::kTileKeys;
    for (int tile = 0; tile < tiles;) {
      tile = scan_until_full(tiles, tile);
      cut_lists();
    }
  }

  __device__ __forceinline__ int range(int query) const {
    return max(0, shared.state.end[query] - shared.state.start[query]);
  }

  // After a sample of `sampled` of `keys` keys: the rank in it of the threshold, which some more than
  // k keys of the query will reach. The number sampled among the best k is about mean, with
  // deviation sqrt(mean) at most. 0: every key.
  __device__ __forceinline__ int rank_in_sample(int query, int sampled, int keys) const {
    if (range(query) <= kCandidateLimit) return 0;
    const float mean = static_cast<float>(p.top_k) * sampled / keys;
    return min(static_cast<int>(mean + 5 * sqrtf(mean)) + 2, sampled);
  }
  __device__ __forceinline__ void choose_thresholds(int sampled, int keys) const {
    GroupState& state = shared.state;
    const int warp = threadIdx.x / 32;
    if (kFewQueries) {  // all scorers for each: sooner done
      const BlockTeam<kScorers> team;
      constexpr int kRoom = sizeof(shared.staged) / sizeof(RankedKey);
      for (int query = 0; query < item.queries; ++query) {
        const int rank = rank_in_sample(query, sampled, keys);
        if (rank == 0) continue;
        const RankedKey* list = lists + query * kCandidateCapacity;
        if (sampled <= kRoom) {
          auto* room = reinterpret_cast<RankedKey*>(shared.staged);
          copy_keys(team, list, sampled, room);
          list = room;
        }
        const RankedKey threshold = select_threshold(team, list, sampled, rank, shared.select[0]);
        if (team.rank == 0) state.threshold[query] = threshold;
        team.sync();
      }
    } else if (warp < item.queries) {
      const int rank = rank_in_sample(warp, sampled, keys);
      if (rank > 0) {
        constexpr int kWords = GroupShared<L>::kKeyRoom / kWarps;
        const RankedKey threshold = select_threshold_by_rank(
            lists + warp * kCandidateCapacity, sampled, rank, shared.key_room() + warp * kWords,
            kWords, shared.select[warp]);
        if (threadIdx.x % 32 == 0) state.threshold[warp] = threshold;
      }
    }
    BlockTeam<kScorers>{}.sync();
  }
};

}  // namespace indexcache::index_topk_device
