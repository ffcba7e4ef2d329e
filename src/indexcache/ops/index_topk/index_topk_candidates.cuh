// The candidates of a group of queries: a scan of keys that appends those whose scores reach the
// queries' thresholds, and where the thresholds come from.
#pragma once

#include "indexcache/ops/index_topk/index_topk_scores.cuh"

namespace indexcache::index_topk_device {

template <class L>
struct GroupCandidates {
  static constexpr int kQueries = L::kGroupQueries, kOwn = L::kOwn, kSums = L::kSums;

  const IndexTopkCudaParams& p;
  Item item;
  GroupShared<L>& shared;
  RankedKey* lists;              // [kQueries][kCandidateCapacity]
  RingPlace<L::kStages>& place;  // of the next tile
  GroupScores<L> scores{p, item, shared};

  // A lane stages every 32nd score of its warp's. Addresses; the bits of kStagedRoom tell how full.
  static constexpr std::uint32_t kStagedStride = 32 * sizeof(StagedScore);
  static constexpr std::uint32_t kStagedRoom = L::kStaged * kStagedStride - kStagedStride;
  __device__ __forceinline__ std::uint32_t staged() const {
    return shared_address(&shared.staged[threadIdx.x / 32][0][threadIdx.x % 32]);
  }

  // A warp: the next place in the query's list, for the lanes that want one.
  __device__ __forceinline__ int take_slot(int query, bool wanted) const {
    int* counts = shared.state.count;
    if constexpr (kQueries > 2) return wanted ? atomicAdd(&counts[query], 1) : 0;
    // Few counters, where lanes would wait for each other: one addition a warp.
    int slot = 0;
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      const int place = take_place(&counts[i], wanted && query == i);
      if (query == i) slot = place;
    }
    return slot;
  }

  // A warp: what its lanes staged, up to `end`, and what reaches the thresholds goes to the lists.
  // `first` is the place in the walk where places count from.
  __device__ __forceinline__ void append_staged(int first, std::uint32_t end) const {
    const GroupState& state = shared.state;
    const KeyWalk walk = shared.walk;
    const bool sampling = walk.stratum != 0;
    for (std::uint32_t from = end & ~kStagedRoom; __any_sync(kAllLanes, from < end);
         from += kStagedStride) {
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
      floor[i] = threshold_score(shared.state.threshold[GroupScores<L>::own_query(i)]);
      if (p.scores != nullptr) floor[i] = __uint_as_float(0x7FFFFFFFu);  // all are to be seen
    }
  }

  // The scorers: whether a list may overflow before the next look.
  __device__ __forceinline__ bool some_list_is_full() const {
    const int i = threadIdx.x;
    return barrier_any(
        kScorersBarrier, kScorers,
        i < kQueries && shared.state.count[i] > kCandidateLimit && !shared.state.settled[i]);
  }

  // The scorers: cuts those lists to the best k, whose least becomes the threshold. There is no room
  // to do it in: keys are on their way.
  __device__ void cut_lists() const {
    GroupState& state = shared.state;
    const QueryTeam<L> team;
    const int query = team.query, size = state.count[query];
    if (size > kCandidateLimit && !state.settled[query]) {
      RankedKey* list = lists + query * kCandidateCapacity;
      SelectScratch& scratch = shared.select[query];
      const RankedKey threshold = select_threshold(team, list, size, p.top_k, nullptr, 0, scratch);
      const int kept = compact(team, list, size, threshold, scratch);
      if (team.rank == 0) {
        state.count[query] = kept;
        state.threshold[query] = threshold;
      }
    }
    barrier_sync(kScorersBarrier, kScorers);
  }

  __device__ __forceinline__ void wait_for_tile(const RingPlace<L::kStages>& at) const {
    mbarrier_wait(&shared.full[at.stage], at.parity);
  }

  // A lane: stages the scores of its two rows of a tile that reach the thresholds' scores. place is
  // where the first is since the last look, end that of what is staged.
  static __device__ __forceinline__ void stage_rows(const float (&sums)[2][kOwn][kSums],
                                                    const float (&scale)[2],
                                                    const float (&floor)[kOwn], std::uint32_t place,
                                                    std::uint32_t& end) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const float score = GroupScores<L>::total(sums[r][own]) * scale[r];
        if (!GroupScores<L>::offers(r) || score < floor[own]) continue;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(end), "f"(score),
                     "r"(place + (own << 16) + r * 8)
                     : "memory");
        end += kStagedStride;
      }
    }
  }

  // The scorers: scores tiles from `tile` on and appends candidates until the walk ends or a list
  // is full. Returns the next tile. The warpgroups go their own ways between looks.
  __device__ __forceinline__ int scan_until_full(int tiles, int tile) const {
    float weights[L::kWeights], floor[kOwn];
    scores.load_weights(weights);
    load_floors(floor);
    const std::uint32_t queries = scores.queries_operand(), keys = scores.keys_operand();
    const int row = GroupScores<L>::first_row();
    const std::uint32_t first_place = GroupScores<L>::own_query(0) << 16 | row;
    const float* scales = shared.scales[0] + row;
    std::uint32_t end = staged();
    for (;;) {
      const int look_first = tile * L::kTileKeys;
      const int look = min(L::kTilesPerLook, tiles - tile) * L::kTileKeys;
      std::uint32_t where = first_place;
      do {
#pragma unroll 1
        while (where < first_place + look && !__any_sync(kAllLanes, is_nearly_full(end))) {
          float d[L::kColumns / 2];
          const std::uint32_t a = keys + place.stage * (L::kKeyBytes / 16);
          wait_for_tile(place);
          GroupScores<L>::multiply(__shfl_sync(kAllLanes, a, 0), queries, d);
          float sums[2][kOwn][kSums] = {};
          wgmma_wait<0>();
          wgmma_pin(d);
          scores.reduce(d, weights, sums);
          float scale[2] = {1, 1};
          if (L::Format::kHasScale) {
            scale[0] = scales[place.stage * L::kTileKeys];
            scale[1] = scales[place.stage * L::kTileKeys + 8];
          }
          __syncwarp();
          if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[place.stage]);
          stage_rows(sums, scale, floor, where, end);
          place = place.next();
          where += L::kTileKeys;
        }
        append_staged(look_first, end);
        end &= ~kStagedRoom;
      } while (where < first_place + look);
      tile += L::kTilesPerLook;
      if (some_list_is_full() || tile >= tiles) return min(tile, tiles);
    }
  }
  static __device__ __forceinline__ bool is_nearly_full(std::uint32_t end) {
    return (end & kStagedRoom) > (L::kStaged - 1 - L::kMostStaged) * kStagedStride;
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
  __device__ __forceinline__ void choose_thresholds(int sampled, int keys, Room room) const {
    const QueryTeam<L> team;
    const int query = team.query, rank = rank_in_sample(query, sampled, keys);
    if (rank > 0) {
      const RankedKey threshold =
          select_threshold(team, lists + query * kCandidateCapacity, sampled, rank, room.words,
                           room.count, shared.select[query]);
      if (team.rank == 0) shared.state.threshold[query] = threshold;
    }
    barrier_sync(kScorersBarrier, kScorers);
  }
};

}  // namespace indexcache::index_topk_device
