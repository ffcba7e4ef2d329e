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

  // A staged score; what is read past the last is not `present`.
  struct Staged {
    bool present;
    float score;
    int place, own;  // in the walk; which of the lane's queries
  };
  // visit(i, what this lane staged i-th) up to `end`, and some more. No branches: lanes have as much to do
  // as the busiest.
  template <class Visit>
  __device__ __forceinline__ void for_each_staged(std::uint32_t end, const Visit& visit) const {
    constexpr int kBatch = 4;
    static_assert(L::kStaged % kBatch == 0);
    std::uint32_t at = end & ~kStagedRoom;
#pragma unroll 1
    for (int base = 0; __any_sync(kAllLanes, at < end); base += kBatch) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i, at += kStagedStride) {
        float score;
        std::uint32_t own_and_place;
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=f"(score), "=r"(own_and_place)
                     : "r"(at)
                     : "memory");
        visit(base + i, Staged{at < end, score, static_cast<int>(own_and_place & ~kSecondOwn),
                               kOwn == 2 ? static_cast<int>(own_and_place >> 31) : 0});
      }
    }
  }

  // One of the lane's queries, as its staged scores need it.
  struct OwnQuery {
    RankedKey threshold;
    int query, start, end;
  };
  __device__ __forceinline__ OwnQuery own_query(int own) const {
    const int query = GroupScores<L>::own_query(own);
    return {shared.state.threshold[query], query, shared.state.start[query],
            shared.state.end[query]};
  }
  // Whether a key of the walk is in the query's range; keeps its score where all are wanted.
  __device__ __forceinline__ bool takes_part(const OwnQuery& own, int index, float score) const {
    const bool inside = index >= own.start && index < own.end;
    if (inside && p.scores != nullptr) {
      p.scores[std::int64_t{shared.item.first_query + own.query} * p.num_keys + index] = score;
    }
    return inside;
  }

  // Few queries, of which most lanes' keys are: one addition for all lanes of a query, and keys side by
  // side, as stores of one sector each would queue.
  static constexpr bool kTogether = kQueries <= 2;
  // The lanes of whose query this lane's is.
  static __device__ __forceinline__ unsigned mates() {
    return kQueries == 1 ? kAllLanes : 0x55555555u << threadIdx.x % 2;
  }
  // A warp: the next places in a query's list, as many as each lane has bits in `wanted`; together, as many
  // as all lanes of the query have, from the same place on.
  __device__ __forceinline__ int take_slots(int query, unsigned wanted) const {
    int* count = &shared.state.count[query];
    if constexpr (!kTogether) {
      return wanted != 0 ? atomicAdd(count, __popc(wanted)) : 0;
    } else {
      int all = 0;
#pragma unroll
      for (int i = 0; i < L::kStaged - 1; ++i) {
        all += __popc(__ballot_sync(kAllLanes, wanted >> i & 1) & mates());
      }
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const int slot = lane < kQueries && all > 0 ? atomicAdd(count, all) : 0;
      return __shfl_sync(kAllLanes, slot, lane % kQueries);
    }
  }

  // A warp: what its lanes staged, up to `end`, goes to the lists if it reaches the thresholds.
  __device__ __forceinline__ void append_staged(std::uint32_t& end) const {
    const KeyWalk walk = {shared.walk.first, shared.walk.count, shared.walk.gap};
    OwnQuery own[kOwn];
    unsigned wanted[kOwn] = {};
#pragma unroll
    for (int e = 0; e < kOwn; ++e) own[e] = own_query(e);
    for_each_staged(end, [&](int i, const Staged& found) {
      const int index = walk.key_in_blocks(found.place);
#pragma unroll
      for (int e = 0; e < kOwn; ++e) {
        const bool takes = found.present && found.own == e && found.place < walk.count &&
                           takes_part(own[e], index, found.score) &&
                           ranked_key(found.score, index) >= own[e].threshold;
        wanted[e] |= static_cast<unsigned>(takes) << i;
      }
    });
    RankedKey* to[kOwn];
#pragma unroll
    for (int e = 0; e < kOwn; ++e) {
      to[e] = lists() + own[e].query * kCandidateCapacity + take_slots(own[e].query, wanted[e]);
    }
    for_each_staged(end, [&](int i, const Staged& found) {
      const RankedKey key = ranked_key(found.score, walk.key_in_blocks(found.place));
#pragma unroll
      for (int e = 0; e < kOwn; ++e) {
        const bool takes = wanted[e] >> i & 1;
        if constexpr (kTogether) {
          const unsigned takers = __ballot_sync(kAllLanes, takes) & mates();
          if (takes) to[e][__popc(takers & ((1u << threadIdx.x % 32) - 1))] = key;
          to[e] += __popc(takers);
        } else if (takes) {
          *to[e]++ = key;
        }
      }
    });
    end &= ~kStagedRoom;
  }

  // A warp: what its lanes staged of a sample, where every key has its place in the list.
  __device__ __forceinline__ void store_sample(std::uint32_t& end) const {
    const KeyWalk walk = shared.walk;
    OwnQuery own[kOwn];
#pragma unroll
    for (int e = 0; e < kOwn; ++e) own[e] = own_query(e);
    for_each_staged(end, [&](int, const Staged& found) {
      if (!found.present || found.place >= walk.count) return;
      const OwnQuery& mine = own[found.own];
      const int index = walk.scattered_key(found.place);
      lists()[mine.query * kCandidateCapacity + found.place] =
          takes_part(mine, index, found.score) ? ranked_key(found.score, index) : kEveryKey;
    });
    end &= ~kStagedRoom;
  }

  __device__ __forceinline__ void load_floors(float (&floor)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      floor[i] = threshold_score(shared.state.threshold[GroupScores<L>::own_query(i)]);
      if (p.scores != nullptr) floor[i] = __uint_as_float(0x7FFFFFFFu);  // all are to be seen
    }
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

  // The scorers, before `tile`: exchange bounds where it is time; cut lists above the limit to the best k
  // and a few more, which saves passes; what they reach becomes the threshold. Keys are on their way
  // meanwhile; nothing is staged, which makes some room.
  __device__ void cut_lists(int tile) const {
    GroupState& state = shared.state;
    barrier_sync(kScorersBarrier, kScorers);  // all have appended what they staged
    if (L::kInPieces && shared.bound_tile > 0 && tile >= shared.bound_tile) {
#pragma unroll 1
      for (int i = 0; i < queries_of_piece<L>(shared.item); ++i) {
        const int size = state.count[i];
        raise_threshold(p, plan, shared, i, lists() + i * kCandidateCapacity);
        if (threadIdx.x == 0) record(i, size - state.count[i], 0);
      }
      barrier_sync(kScorersBarrier, kScorers);
      if (threadIdx.x == 0) shared.bound_tile = next_bound_tile<L>(shared.walk, tile);
    }
    const QueryTeam<L> team;
    const int query = team.query, size = state.count[query];
    if (is_full(shared, query)) {
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

  // A lane: stages those of its scores of a tile that reach the thresholds' scores. place is its first row's
  // in the walk, end that of what is staged.
  static __device__ __forceinline__ void stage_rows(const typename GroupScores<L>::Sums& sums,
                                                    const float (&scale)[L::kRows],
                                                    const float (&floor)[kOwn], std::uint32_t place,
                                                    std::uint32_t& end) {
    float scores[L::kRows][kOwn];
    GroupScores<L>::join(sums, scores);
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) {
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const float score = scores[r][own] * scale[r];
        if (!GroupScores<L>::offers() || score < floor[own]) continue;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(end), "f"(score),
                     "r"(place + own * kSecondOwn + r * 8)
                     : "memory");
        end += kStagedStride;
      }
    }
  }

  // The scorers: scores tiles from `tile` on and appends candidates until the walk ends or lists are
  // to be cut. Returns the next tile. The warpgroups go their own ways.
  __device__ __forceinline__ int scan_until_full(int tiles, int tile) const {
    float4 weights[L::kHeld / 4];
    float floor[kOwn];
    scores.load_weights(weights);
    load_floors(floor);
    const std::uint32_t queries = scores.queries_operand(), keys = scores.keys_operand();
    const float* scales = shared.scales[0] + GroupScores<L>::first_row();
    const bool sampling = shared.walk.scattered();
    std::uint32_t end = staged();
    // Of this lane's first row in the walk: the present tile's, and the last one's.
    const int first = GroupScores<L>::first_row(), last = (tiles - 1) * L::kTileKeys + first;
    int position = tile * L::kTileKeys + first;
    typename GroupScores<L>::Accumulators d;
    const auto start = [&] {
      wait_for_tile(place);
      GroupScores<L>::multiply(keys + place.stage * (L::kKeyBytes / 16), queries, d);
    };
    const auto sum = [&](typename GroupScores<L>::Sums& sums) {
      wgmma_wait<0>();
      wgmma_pin(d);
      scores.reduce(d, weights, sums);
    };
    // A tile whose sums are there. Returns whether lists are to be cut after the next.
    const auto finish = [&](const typename GroupScores<L>::Sums& sums, int stage) {
      float scale[L::kRows];
#pragma unroll
      for (int r = 0; r < L::kRows; ++r) {
        scale[r] = L::Format::kHasScale ? scales[stage * L::kTileKeys + 8 * r] : 1.0f;
      }
      const std::uint32_t cut = shared.cut[stage];
      __syncwarp();
      if (end % kStagedStride == 0) mbarrier_arrive(&shared.empty[stage]);
      stage_rows(sums, scale, floor, position, end);
      position += L::kTileKeys;
      return cut;
    };
    std::uint32_t cut = 0;  // whether lists are to be cut after the tile that is started
    int append = position;  // where the warps append, whether they must or not
    for (bool stop = false; position <= last && !stop;) {
      if (position >= append) append += append_period();
      const int pause = min(append, last);
      start();
#pragma unroll 1
      while (position < pause && !any_of_warpgroup(is_nearly_full(end | cut))) {
        const int stage = place.stage;
        typename GroupScores<L>::Sums sums = {};
        sum(sums);
        place = place.next();
        start();
        cut = finish(sums, stage);
      }
      typename GroupScores<L>::Sums sums = {};
      sum(sums);
      stop = cut != 0;
      cut = finish(sums, place.stage);
      place = place.next();
      sampling ? store_sample(end) : append_staged(end);
    }
    return (position - first) / L::kTileKeys;
  }
  // All warps of a warpgroup are to start the same products at the same place of the code.
  static __device__ __forceinline__ bool any_of_warpgroup(bool value) {
    return __any_sync(kAllLanes, barrier_any(kWarpgroupBarrier + warpgroup(), kWarpgroup, value));
  }
  // Whether a lane's places may not do for two more tiles.
  static constexpr int kPlaces = L::kStaged - 1 - 2 * L::kMostStaged;
  static_assert(kPlaces > 0);
  static __device__ __forceinline__ bool is_nearly_full(std::uint32_t end) {
    return (end & kStagedRoom) > static_cast<unsigned>(kPlaces) * kStagedStride;
  }
  // After how many keys the warps of a warpgroup append though their lanes have places yet: each waits for
  // the others' products, so they do it at the same time. A lane then has half of its places full where
  // twice k keys reach a threshold. Not where most keys do: lanes fill alike.
  __device__ __forceinline__ int append_period() const {
    constexpr int kNever = 1 << 20;
    const int count = shared.walk.count;
    const float tiles = kPlaces / (4.0f * L::kMostStaged) * count / p.top_k;
    return (count <= 4 * p.top_k ? kNever : max(static_cast<int>(min(tiles, 1.0f * kNever)), 1)) *
           L::kTileKeys;
  }

  // One thread of a piece: what scan() walks.
  __device__ __forceinline__ void open_walk(const KeyWalk& walk) const {
    shared.walk = walk;
    shared.bound_tile = first_bound_tile<L>(walk, share_of_piece(p, plan));
  }

  // The scorers: has the fetchers start on the keys of a walk, which scan() is called for next.
  __device__ __forceinline__ void begin(const KeyWalk& walk) const {
    fence_for_wgmma();  // what selections left in the keys' room, before tensor copies write there
    barrier_sync(kScorersBarrier, kScorers);  // none asks for the last walk any more
    if (threadIdx.x == 0) hand_over(shared, walk, shared.item.group);
    barrier_sync(kScorersBarrier, kScorers);
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
    return min(static_cast<int>(mean + 5 * sqrtf(mean)) + 2, sampled);
  }
  // The scorers: thresholds from the scores of `sampled` scattered keys: for each query the one of rank
  // rank(query), or none where that is 0. Whether all were found. What select_threshold finds lies
  // anywhere down to the next key: among few keys, such as seeds, far below. kLeast: the key itself.
  enum class Reached { kAny, kLeast };
  template <Reached reached, class Rank>
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
      if (reached == Reached::kLeast && threshold != kEveryKey) {
        Extremes<RankedKey> reaching;
        for_each_key(team, list, sampled, [&](RankedKey key, bool valid) {
          if (valid && key >= threshold) reaching.add({key, key});
        });
        team.sync();
        threshold = join(team, reaching, shared.select[query]).low;
      }
      if (team.rank == 0) shared.state.threshold[query] = threshold;
    }
    return !barrier_any(kScorersBarrier, kScorers, wanted > 0 && threshold == kEveryKey);
  }
};

}  // namespace indexcache::index_topk_device
