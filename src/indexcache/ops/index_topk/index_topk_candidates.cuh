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
  static constexpr int kTogether = L::kTogether;
  static constexpr int kInFlight = kUnits;
  static_assert(L::kTilesPerLook % kTogether == 0 && L::kStages / 2 + kTogether <= L::kStages);

  const IndexTopkCudaParams& p;
  Item item;
  GroupShared<L>& shared;
  RankedKey* lists;              // [kQueries][kCandidateCapacity]
  RingPlace<L::kStages>& place;  // of the next tile
  GroupScores<L> scores{p, item, shared};

  __device__ __forceinline__ StagedScore* staged() const { return shared.staged[threadIdx.x / 32]; }

  // A warp: notes what reaches the thresholds' scores, at staged()[count] and on.
  __device__ __forceinline__ void stage_score(bool wanted, float score, int query, int place,
                                              int& count) const {
    const unsigned takers = __ballot_sync(kAllLanes, wanted);
    if (takers == 0) return;
    if (wanted) {
      const int before = __popc(takers & ((1u << threadIdx.x % 32) - 1));
      staged()[count + before] = {score, static_cast<std::uint32_t>(query << 16 | place)};
    }
    count += __popc(takers);
  }

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

  // A warp: what it staged and what reaches the thresholds goes to the lists. `first` is the place
  // in the walk where places count from.
  __device__ __forceinline__ void append_staged(int first, int& count) const {
    GroupState& state = shared.state;
    const KeyWalk& walk = shared.walk;
    __syncwarp();
    const int lane = threadIdx.x % 32;
    for (int i = lane; i < (count + 31) / 32 * 32; i += 32) {
      const StagedScore s = i < count ? staged()[i] : StagedScore{};
      const int query = s.query_and_place >> 16;
      const int at = first + static_cast<int>(s.query_and_place & 0xFFFF);
      const int index = walk.key(at);
      const bool inside =
          i < count && at < walk.count && index >= state.start[query] && index < state.end[query];
      const RankedKey key = ranked_key(s.score, index);
      if (inside && p.scores != nullptr) {
        p.scores[std::int64_t{item.first_query + query} * p.num_keys + index] = s.score;
      }
      const bool wanted = inside && key >= state.threshold[query];
      const int slot = take_slot(query, wanted);
      if (wanted) lists[query * kCandidateCapacity + slot] = key;
    }
    __syncwarp();
    count = 0;
  }

  __device__ __forceinline__ void load_floors(float (&floor)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      floor[i] = threshold_score(shared.state.threshold[L::column_query(threadIdx.x % 4, i)]);
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

  // The scorers: scores tiles from `tile` on and appends candidates until the walk ends or a list
  // is full. Returns the next tile. Tiles go in pairs, in one straight line of code, since the
  // compiler lets no products run across the end of a loop; within it, the next unit's are started
  // as soon as the accumulators that they need are read. The second of a pair may lie past the end:
  // its products are of whatever lies there, and what is staged of it is dropped.
  __device__ __forceinline__ int scan_until_full(int tiles, int tile) const {
    float weights[L::kWeights], floor[kOwn];
    scores.load_weights(weights);
    load_floors(floor);
    int staged_count = 0, look_first = tile * L::kTileKeys;
    bool full = false;
#pragma unroll 1
    do {
      float d[kInFlight][L::kColumns / 2];
      float sums[kRowBlocks][2][kOwn][kSums], scale[kRowBlocks][2];
      RingPlace<L::kStages> at[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) at[i] = i == 0 ? place : at[i - 1].next();
      const auto multiply = [&](int i) {
        const int t = i / kUnits;
        if (i % kUnits == 0 && (t == 0 || tile + t < tiles)) wait_for_tile(at[t]);
        scores.multiply(i % kUnits, at[t].stage, d[i % kInFlight]);
      };
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) multiply(i);
#pragma unroll
      for (int i = 0; i < kTogether * kUnits; ++i) {
        const int t = i / kUnits, unit = i % kUnits;
        if (i + 1 < kTogether * kUnits) {
          wgmma_wait<kInFlight - 1>();
        } else {
          wgmma_wait<0>();
        }
        wgmma_pin(d[i % kInFlight]);
        if (unit == 0) {
#pragma unroll
          for (int j = 0; j < 2 * kRowBlocks * kOwn; ++j) {
#pragma unroll
            for (int k = 0; k < kSums; ++k) sums[j / 2 / kOwn][j % 2][j / 2 % kOwn][k] = 0;
          }
        }
        scores.reduce(unit % L::kBanks, d[i % kInFlight], weights, sums[unit / L::kBanks]);
        // All of d is read before the next products overwrite it: else the compiler copies it.
#pragma unroll
        for (int j = 0; j < 2 * kOwn; ++j) wgmma_pin(sums[unit / L::kBanks][j % 2][j / 2]);
        if (i + kInFlight < kTogether * kUnits) multiply(i + kInFlight);
        if (unit < kUnits - 1) continue;
#pragma unroll
        for (int j = 0; j < 2 * kRowBlocks; ++j) {
          const int row = GroupScores<L>::first_row(j / 2) + j % 2 * 8;
          scale[j / 2][j % 2] = scores.has_scales() ? shared.scales[at[t].stage][row] : 1.0f;
        }
        __syncwarp();
        if ((t == 0 || tile + t < tiles) && threadIdx.x % 32 == 0) {
          mbarrier_arrive(&shared.empty[at[t].stage]);
        }
#pragma unroll
        for (int j = 0; j < 2 * kRowBlocks; ++j) {
          const int row = GroupScores<L>::first_row(j / 2) + j % 2 * 8;
#pragma unroll
          for (int own = 0; own < kOwn; ++own) {
            const float score =
                GroupScores<L>::total(sums[j / 2][j % 2][own]) * scale[j / 2][j % 2];
            const bool wanted =
                GroupScores<L>::offers(j % 2) && (p.scores != nullptr || !(score < floor[own]));
            stage_score(wanted, score, L::column_query(threadIdx.x % 4, own),
                        (tile + t) * L::kTileKeys - look_first + row, staged_count);
          }
        }
      }
      const int done = min(kTogether, tiles - tile);
      place = at[0];
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (i < done) place = at[i].next();
      tile += done;
      const bool look = tile % L::kTilesPerLook == 0 || tile == tiles;
      if (look || staged_count > L::kStaged - kTogether * L::kMostStaged) {
        append_staged(look_first, staged_count);
      }
      if (look) {
        look_first = tile * L::kTileKeys;
        full = some_list_is_full();
      }
    } while (tile < tiles && !full);
    return tile;
  }

  // The scorers: has the fetchers start on the keys of a walk, which scan() is called for next.
  __device__ __forceinline__ void begin(const KeyWalk& walk) const {
    if (walk.count == 0) return;
    if (threadIdx.x == 0) {
      shared.walk = walk;
      shared.item = item;
    }
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

  // After the sample: the threshold that some more than k keys of the query will reach. The number
  // sampled among the best k is about mean, with deviation sqrt(mean) at most. 0: every key.
  __device__ __forceinline__ int rank_in_sample(int query) const {
    const int sampled = shared.state.count[query], keys = range(query);
    if (keys <= kCandidateLimit) return 0;
    const float mean = static_cast<float>(p.top_k) * sampled / keys;
    const int rank = static_cast<int>(mean + 5 * sqrtf(mean)) + 2;
    return rank < sampled ? rank : 0;
  }
  __device__ __forceinline__ void choose_thresholds() const {
    GroupState& state = shared.state;
    const int warp = threadIdx.x / 32;
    if (kFewQueries) {  // all scorers for each: sooner done
      const BlockTeam<kScorers> team;
      constexpr int kRoom = sizeof(shared.staged) / sizeof(RankedKey);
      for (int query = 0; query < item.queries; ++query) {
        const int rank = rank_in_sample(query), size = state.count[query];
        if (rank == 0) continue;
        const RankedKey* keys = lists + query * kCandidateCapacity;
        if (size <= kRoom) {
          auto* room = reinterpret_cast<RankedKey*>(shared.staged);
          copy_keys(team, keys, size, room);
          keys = room;
        }
        const RankedKey threshold = select_threshold(team, keys, size, rank, shared.select[0]);
        if (team.rank == 0) state.threshold[query] = threshold;
        team.sync();
      }
    } else if (warp < item.queries) {
      const int rank = rank_in_sample(warp);
      if (rank > 0) {
        constexpr int kWords = GroupShared<L>::kKeyRoom / kWarps;
        const RankedKey threshold = select_threshold_by_rank(
            lists + warp * kCandidateCapacity, state.count[warp], rank,
            shared.key_room() + warp * kWords, kWords, shared.select[warp]);
        if (threadIdx.x % 32 == 0) state.threshold[warp] = threshold;
      }
    }
    BlockTeam<kScorers>{}.sync();
    if (threadIdx.x < kQueries) state.count[threadIdx.x] = 0;
    BlockTeam<kScorers>{}.sync();
  }
};

}  // namespace indexcache::index_topk_device
