// The candidates of a group of queries: a scan of keys that appends those whose scores reach the
// queries' thresholds, and where the thresholds come from.
#pragma once

#include "indexcache/ops/index_topk/index_topk_bounds.cuh"
#include "indexcache/ops/index_topk/index_topk_scores.cuh"

namespace indexcache::index_topk_device {

template <class L>
struct GroupCandidates {
  static constexpr int kQueries = L::kGroupQueries, kOwn = L::kOwn, kSums = L::kSums;

  const IndexTopkCudaParams& p;
  const IndexTopkPlan& plan;
  GroupShared<L>& shared;
  RingPlace<L::kStages>& place;  // of the next tile
  GroupScores<L> scores{p, shared};

  // The block's lists: [kQueries][kCandidateCapacity].
  __device__ __forceinline__ RankedKey* lists() const {
    return static_cast<RankedKey*>(p.workspace) +
           std::int64_t{blockIdx.x} * kQueries * kCandidateCapacity;
  }

  // A lane stages every 32nd score of its warp's. Addresses; the bits of kStagedRoom tell how full.
  static constexpr std::uint32_t kStagedStride = 32 * sizeof(StagedScore);
  static constexpr std::uint32_t kStagedRoom = L::kStaged * kStagedStride - kStagedStride;
  // Beside a place: of the lane's second query.
  static constexpr std::uint32_t kSecondOwn = 1u << 31;
  __device__ __forceinline__ std::uint32_t staged() const {
    return shared_address(&shared.staged[threadIdx.x / 32][0][threadIdx.x % 32]);
  }

  // A staged score of this lane: whether there is one, its key of a list, and which of the lane's
  // queries it is of.
  struct Found {
    bool present;  // in the walk
    bool inside;   // and in the query's range
    int place, own;
    RankedKey key;
  };
  template <bool scattered>
  __device__ __forceinline__ Found load_staged(const KeyWalk& walk, std::uint32_t from,
                                               std::uint32_t end) const {
    float score = 0;
    std::uint32_t own_and_place = 0;
    if (from < end) {
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                   : "=f"(score), "=r"(own_and_place)
                   : "r"(from)
                   : "memory");
    }
    Found found;
    found.place = static_cast<int>(own_and_place & ~kSecondOwn);
    found.own = kOwn == 2 && own_and_place >= kSecondOwn;
    found.present = from < end && found.place < walk.count;
    const int index = !scattered      ? walk.key_in_blocks(found.place)
                      : found.present ? walk.scattered_key(found.place)
                                      : 0;
    const int query = GroupScores<L>::own_query(found.own);
    found.inside =
        found.present && index >= shared.state.start[query] && index < shared.state.end[query];
    found.key = ranked_key(score, index);
    if (found.inside && p.scores != nullptr) {
      p.scores[std::int64_t{shared.item.first_query + query} * p.num_keys + index] = score;
    }
    return found;
  }

  // A warp: appends keys[i] where bit i of wanted is set. Few queries, of which most lanes' keys are: one
  // addition for all lanes of a query, and keys side by side, as stores of one sector each would queue.
  __device__ __forceinline__ void append_together(const RankedKey (&keys)[L::kStaged - 1],
                                                  unsigned wanted) const {
    const unsigned lane = threadIdx.x % 32, before = (1u << lane) - 1;
    const unsigned mates = kQueries == 1 ? kAllLanes : 0x55555555u << lane % 2;
    const int query = GroupScores<L>::own_query(0);
    int all = 0;
#pragma unroll
    for (int i = 0; i < L::kStaged - 1; ++i) {
      all += __popc(__ballot_sync(kAllLanes, wanted >> i & 1) & mates);
    }
    int slot = lane < kQueries && all > 0 ? atomicAdd(&shared.state.count[query], all) : 0;
    slot = __shfl_sync(kAllLanes, slot, lane % kQueries);
    RankedKey* list = lists() + query * kCandidateCapacity + slot;
#pragma unroll
    for (int i = 0; i < L::kStaged - 1; ++i) {
      const unsigned takers = __ballot_sync(kAllLanes, wanted >> i & 1) & mates;
      if (wanted >> i & 1) list[__popc(takers & before)] = keys[i];
      list += __popc(takers);
    }
  }

  // A warp: what its lanes staged, up to `end`, goes to the lists if it reaches the thresholds. All loads
  // before all stores: the warps of a warpgroup wait for each other, and each does this at its own time.
  __device__ __forceinline__ void append_staged(std::uint32_t& end) const {
    constexpr int kMost = L::kStaged - 1;
    const std::uint32_t from = end & ~kStagedRoom;
    const KeyWalk walk = shared.walk;
    RankedKey threshold[kOwn];
    unsigned wanted[kOwn] = {};
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      threshold[own] = shared.state.threshold[GroupScores<L>::own_query(own)];
    }
    RankedKey keys[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Found found = load_staged<false>(walk, from + i * kStagedStride, end);
      keys[i] = found.key;
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const bool takes = found.inside && found.own == own && found.key >= threshold[own];
        wanted[own] |= static_cast<unsigned>(takes) << i;
      }
    }
    if constexpr (kQueries <= 2) {
      append_together(keys, wanted[0]);
    } else {
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int query = GroupScores<L>::own_query(own), taken = __popc(wanted[own]);
        const int slot = taken > 0 ? atomicAdd(&shared.state.count[query], taken) : 0;
        RankedKey* to = lists() + query * kCandidateCapacity + slot;
#pragma unroll
        for (int i = 0; i < kMost; ++i) {
          if (wanted[own] >> i & 1) *to++ = keys[i];
        }
      }
    }
    end = from;
  }

  // A warp: what its lanes staged of a sample, where every key has its place in the list.
  __device__ __forceinline__ void store_sample(std::uint32_t& end) const {
    const std::uint32_t from = end & ~kStagedRoom;
    const KeyWalk walk = shared.walk;
#pragma unroll
    for (int i = 0; i < L::kStaged - 1; ++i) {
      const Found found = load_staged<true>(walk, from + i * kStagedStride, end);
      RankedKey* list = lists() + GroupScores<L>::own_query(found.own) * kCandidateCapacity;
      if (found.present) list[found.place] = found.inside ? found.key : kEveryKey;
    }
    end = from;
  }

  __device__ __forceinline__ void load_floors(float (&floor)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      floor[i] = threshold_score(shared.state.threshold[GroupScores<L>::own_query(i)]);
      if (p.scores != nullptr) floor[i] = __uint_as_float(0x7FFFFFFFu);  // all are to be seen
    }
  }

  // A warp at look n, before the keys from n * kKeysPerLook on: whether look n - 1 found a list above
  // the limit. The first warp looks; by the next look all have heard, so that hardly any waits.
  __device__ __forceinline__ bool look(int n) const {
    if (threadIdx.x < 32) {
      const int i = threadIdx.x;
      const bool above = __any_sync(kAllLanes, i < kQueries && is_full(i));
      if (i == 0) shared.looks[n % kLooks] = 2 * n + above;
    }
    int before;
    do {
      before = shared.looks[(n - 1) % kLooks];
    } while (before >> 1 != n - 1);
    return before & 1;
  }
  __device__ __forceinline__ bool is_full(int query) const {
    const int count = *static_cast<volatile int*>(&shared.state.count[query]);
    return count > L::kLimit && !shared.state.settled[query];
  }
  // One thread, when no warp scans: the next is look n + 1.
  __device__ __forceinline__ void reset_looks(int n) const {
    for (int i = 0; i < kLooks; ++i) shared.looks[i] = i == n % kLooks ? 2 * n : -1;
  }

  // One thread: of a query's list, that keys came into it and that it overflowed.
  __device__ __forceinline__ void record(int query, int keys, int overflows) const {
    if (p.list_counts == nullptr || query >= shared.item.queries) return;
    std::int32_t* counts = p.list_counts + 2 * (std::int64_t{shared.item.first_query} + query);
    atomicAdd(counts, keys);
    atomicAdd(counts + 1, overflows);
  }

  static constexpr int kCutSlack = 256;
  static_assert(L::kLimit >= kMostOrdered + kCutSlack);

  // The scorers, before `tile`: exchanges bounds where it is time; cuts lists above the limit to the best k and a few more, which saves
  // passes; what they reach becomes the threshold. Keys are on their way meanwhile; nothing is staged,
  // which makes some room.
  __device__ void cut_lists(int tile) const {
    GroupState& state = shared.state;
    barrier_sync(kScorersBarrier, kScorers);  // all have appended what they staged
    if (threadIdx.x == 0) reset_looks(tile / L::kTilesPerLook);
    if (L::kInPieces && tile == shared.bound_tile) {
#pragma unroll 1
      for (int i = 0; i < queries_of_piece<L>(shared.item); ++i) {
        raise_threshold(p, plan, shared, i, lists() + i * kCandidateCapacity);
      }
      barrier_sync(kScorersBarrier, kScorers);
      if (threadIdx.x == 0) shared.bound_tile = bound_tile<L>(shared.walk, 2 * tile);
    }
    const QueryTeam<L> team;
    const int query = team.query, size = state.count[query];
    if (is_full(query)) {
      RankedKey* list = lists() + query * kCandidateCapacity;
      SelectScratch& scratch = shared.select[query];
      const Room free = QueryTeam<L>::share(shared.staged, sizeof shared.staged);
      const RankedKey threshold =
          select_threshold(team, list, size, p.top_k, free.words, free.count, scratch, kCutSlack);
      const int kept = compact(team, list, size, threshold, scratch);
      if (team.rank == 0) {
        state.count[query] = kept;
        state.threshold[query] = threshold;
        record(query, size - kept, 1);
      }
    }
    barrier_sync(kScorersBarrier, kScorers);
  }

  __device__ __forceinline__ void wait_for_tile(const RingPlace<L::kStages>& at) const {
    mbarrier_wait(&shared.full[at.stage], at.parity);
  }

  // A lane: stages the scores of its two rows of a tile that reach the thresholds' scores. place is
  // the first's in the walk, end that of what is staged.
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
                     "r"(place + own * kSecondOwn + r * 8)
                     : "memory");
        end += kStagedStride;
      }
    }
  }

  // The scorers: scores tiles from `tile` on and appends candidates until the walk ends or a list
  // is full. Returns the next tile. The warpgroups go their own ways between looks.
  __device__ __forceinline__ int scan_until_full(int tiles, int tile) const {
    float4 weights[L::kHeld / 4];
    float floor[kOwn];
    scores.load_weights(weights);
    load_floors(floor);
    const std::uint32_t queries = scores.queries_operand(), keys = scores.keys_operand();
    const int row = GroupScores<L>::first_row();
    const float* scales = shared.scales[0] + row;
    const bool sampling = shared.walk.scattered();
    std::uint32_t end = staged();
    const auto append = [&] { sampling ? store_sample(end) : append_staged(end); };
    int stop = min(tile + L::kTilesPerLook, tiles);
    for (;;) {
#pragma unroll 1
      for (; tile < stop && !__any_sync(kAllLanes, is_nearly_full(end)); ++tile) {
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
        stage_rows(sums, scale, floor, tile * L::kTileKeys + row, end);
        place = place.next();
      }
      // At a look what is staged may wait.
      const bool looks = tile == stop && tile < tiles;
      const bool full =
          looks && (L::kInPieces && tile == shared.bound_tile || look(tile / L::kTilesPerLook));
      if (!looks || full) append();
      if (full || tile == tiles) return tile;
      if (looks) stop = min(tile + L::kTilesPerLook, tiles);
    }
  }
  static __device__ __forceinline__ bool is_nearly_full(std::uint32_t end) {
    return (end & kStagedRoom) > (L::kStaged - 1 - L::kMostStaged) * kStagedStride;
  }

  // One thread: what the next scan() walks.
  __device__ __forceinline__ void open_walk(const KeyWalk& walk) const {
    shared.walk = walk;
    if (L::kInPieces) shared.bound_tile = first_bound_tile<L>(walk, share_of_piece(p, plan));
    reset_looks(0);
  }

  // The scorers: has the fetchers start on the keys of a walk, which scan() is called for next. All
  // fetchers know a walk once its tiles come; of one without tiles they hear nothing.
  __device__ __forceinline__ void begin(const KeyWalk& walk) const {
    barrier_sync(kScorersBarrier, kScorers);  // none asks for the last walk any more
    if (threadIdx.x == 0) open_walk(walk);
    if (walk.count == 0) return barrier_sync(kScorersBarrier, kScorers);
    fence_for_wgmma();  // what selections left in the keys' room, before tensor copies write there
    barrier_sync(kScanBarrier, kThreads);
  }

  // The scorers: scores the keys of the walk and appends candidates.
  __device__ __forceinline__ void scan() const {
    const int tiles = (shared.walk.count + L::kTileKeys - 1) / L::kTileKeys;
    for (int tile = 0; tile < tiles;) {
      tile = scan_until_full(tiles, tile);
      cut_lists(tile);
    }
  }

  __device__ __forceinline__ int range(int query) const {
    return max(0, shared.state.end[query] - shared.state.start[query]);
  }

  // After a sample of `sampled` of `keys` keys: the rank in it of the threshold, which some more than
  // k keys of the query will reach. The number sampled among the best k is about mean, with
  // deviation sqrt(mean) at most. 0: every key.
  __device__ __forceinline__ int rank_in_sample(int query, int sampled, int keys) const {
    if (range(query) <= kShortRange) return 0;
    const float mean = static_cast<float>(p.top_k) * sampled / keys;
    return min(static_cast<int>(mean + 4 * sqrtf(mean)) + 2, sampled);
  }
  // The scorers: thresholds from the scores of `sampled` scattered keys: for each query the one of rank
  // rank(query), or none where that is 0. Whether all were found.
  template <class Rank>
  __device__ __forceinline__ bool choose_thresholds(int sampled, Room room,
                                                    const Rank& rank) const {
    const QueryTeam<L> team;
    const int query = team.query, wanted = rank(query);
    RankedKey* list = lists() + query * kCandidateCapacity;
    RankedKey threshold = kEveryKey;
    if (wanted > 0 && wanted <= sampled) {
      if (team.rank == 0)
        list[sampled] = kEveryKey;  // so that the last of them may be the threshold
      team.sync();
      threshold = select_threshold(team, list, sampled + 1, wanted, room.words, room.count,
                                   shared.select[query]);
      if (team.rank == 0) shared.state.threshold[query] = threshold;
    }
    return !barrier_any(kScorersBarrier, kScorers, wanted > 0 && threshold == kEveryKey);
  }
};

}  // namespace indexcache::index_topk_device
