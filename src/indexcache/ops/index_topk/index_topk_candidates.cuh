// The candidates of a group of queries: a scan of keys that appends those whose scores reach the
// queries' thresholds, and where the thresholds come from.
#pragma once

#include "indexcache/ops/index_topk/index_topk_group.cuh"
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
  // visit(some of what this lane staged) for all of it up to `end`, and some more. No branches: lanes have as much to
  // do as the busiest.
  template <int batch, class Visit>
  __device__ __forceinline__ void for_staged_batches(std::uint32_t end, const Visit& visit) const {
    static_assert(L::kStaged % batch == 0);
#pragma unroll 1
    for (std::uint32_t at = end & ~kStagedRoom; __any_sync(kAllLanes, at < end);) {
      Staged found[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i, at += kStagedStride) {
        float score;
        std::uint32_t own_and_place;
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=f"(score), "=r"(own_and_place)
                     : "r"(at)
                     : "memory");
        found[i] = {at < end, score, static_cast<int>(own_and_place & ~kSecondOwn),
                    kOwn == 2 ? static_cast<int>(own_and_place >> 31) : 0};
      }
      visit(found);
    }
  }
  // visit(i, the i-th).
  template <class Visit>
  __device__ __forceinline__ void for_each_staged(std::uint32_t end, const Visit& visit) const {
    constexpr int kBatch = 4;
    int base = 0;
    for_staged_batches<kBatch>(end, [&](const Staged(&found)[kBatch]) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) visit(base + i, found[i]);
      base += kBatch;
    });
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

  // Whether a staged score's key goes to the list of one of the lane's queries, which `e` tells. (Asked about outside, e has
  // the compiler look queries up in local memory.)
  __device__ __forceinline__ bool takes(const OwnQuery& own, int e, const Staged& found,
                                        const KeyWalk& walk) const {
    const int index = walk.first + found.place;
    return found.present && found.own == e && found.place < walk.count &&
           takes_part(own, index, found.score) && ranked_key(found.score, index) >= own.threshold;
  }
  // What staged places are places of.
  __device__ __forceinline__ KeyWalk staged_walk() const {
    const KeyWalk& all = L::kInPieces ? shared.range : shared.walk;
    return {all.first, all.count};
  }

  // A warp: what its lanes staged, up to `end`, goes to the lists if it reaches the thresholds.
  __device__ __forceinline__ void append_staged(std::uint32_t& end) const {
    if constexpr (kQueries <= 2) {
      append_together(end);
    } else {
      append_apart(end);
    }
    end &= ~kStagedRoom;
  }

  // Few queries, of which most lanes' keys are: one addition for all lanes of a query, and keys side by
  // side, as stores of one sector each would queue.
  __device__ __forceinline__ void append_together(std::uint32_t end) const {
    constexpr int kBatch = 4;
    const unsigned lane = threadIdx.x % 32;
    const unsigned mates = kQueries == 1 ? kAllLanes : 0x55555555u << lane % 2;
    const KeyWalk walk = staged_walk();
    const OwnQuery own = own_query(0);
    RankedKey* const list = lists() + own.query * kCandidateCapacity;
    const std::uint32_t count =
        lane < kQueries ? shared_address(&shared.state.count[own.query]) : shared.aside.own();
    for_staged_batches<kBatch>(end, [&](const Staged(&found)[kBatch]) {
      RankedKey keys[kBatch];
      unsigned takers[kBatch];
      unsigned all = 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int index = walk.first + found[i].place;
        const bool inside = found[i].present & (index >= own.start) & (index < own.end);
        keys[i] = ranked_key(found[i].score, index);
        takers[i] = __ballot_sync(kAllLanes, inside & (keys[i] >= own.threshold)) & mates;
        all += __popc(takers[i]);
      }
      if (p.scores != nullptr) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (found[i].present) takes_part(own, walk.first + found[i].place, found[i].score);
        }
      }
      unsigned slot = fetch_add(count, all);
      slot = __shfl_sync(kAllLanes, slot, lane % kQueries);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        store_where((takers[i] >> lane & 1) != 0,
                    list + slot + __popc(takers[i] & ((1u << lane) - 1)), keys[i]);
        slot += __popc(takers[i]);
      }
    });
  }

  // Many: a lane has few for each.
  __device__ __forceinline__ void append_apart(std::uint32_t end) const {
    const KeyWalk walk = staged_walk();
    OwnQuery own[kOwn];
    unsigned wanted[kOwn] = {};
#pragma unroll
    for (int e = 0; e < kOwn; ++e) own[e] = own_query(e);
    for_each_staged(end, [&](int i, const Staged& found) {
#pragma unroll
      for (int e = 0; e < kOwn; ++e) {
        wanted[e] |= static_cast<unsigned>(takes(own[e], e, found, walk)) << i;
      }
    });
    RankedKey* to[kOwn];
#pragma unroll
    for (int e = 0; e < kOwn; ++e) {
      const int count = __popc(wanted[e]);
      to[e] = lists() + own[e].query * kCandidateCapacity +
              (count != 0 ? atomicAdd(&shared.state.count[own[e].query], count) : 0);
    }
    for_each_staged(end, [&](int i, const Staged& found) {
      const RankedKey key = ranked_key(found.score, walk.first + found.place);
#pragma unroll
      for (int e = 0; e < kOwn; ++e) {
        if (wanted[e] >> i & 1) *to[e]++ = key;
      }
    });
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
      const bool inside = takes_part(mine, index, found.score);
      lists()[mine.query * kCandidateCapacity + found.place] =
          inside ? ranked_key(found.score, index) : kEveryKey;
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

  // The scorers: cut lists above the limit to the best k and a few more, which saves passes; what they reach
  // becomes the threshold. Keys are on their way meanwhile; nothing is staged, which makes some room.
  __device__ void cut_lists() const {
    GroupState& state = shared.state;
    barrier_sync(kScorersBarrier, kScorers);  // all have appended what they staged
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

  // Of the barriers of a stage this warpgroup's.
  static __device__ __forceinline__ int stream() { return L::kInPieces ? L::block() : 0; }

  // The scorers' registers while they score tiles.
  struct TileScan {
    const GroupCandidates& of;
    GroupShared<L>& shared = of.shared;
    RingPlace<L::kStages>& place = of.place;
    float4 weights[L::kHeld / 4];
    float floor[kOwn];
    std::uint32_t queries = of.scores.queries_operand(), keys = of.scores.keys_operand();
    const float* scales = shared.scales[0] + GroupScores<L>::first_row();
    std::uint32_t end = of.staged();  // of what this lane has staged
    typename GroupScores<L>::Accumulators d;
    using Sums = typename GroupScores<L>::Sums;

    __device__ __forceinline__ explicit TileScan(const GroupCandidates& candidates)
        : of(candidates) {
      of.scores.load_weights(weights);
      of.load_floors(floor);
    }
    // Starts the products of the tile that has come.
    __device__ __forceinline__ void multiply() {
      GroupScores<L>::multiply(keys + place.stage * (L::kKeyBytes / 16), queries, d);
    }
    __device__ __forceinline__ void sum(Sums& sums) {
      wgmma_wait<0>();
      wgmma_pin(d);
      of.scores.reduce(d, weights, sums);
    }
    // A tile whose sums are there: gives its stage back; take(score, row, own) for this lane's scores, of its row or
    // the eighth after it, and of the lane's queries.
    template <class Take>
    __device__ __forceinline__ void finish(const Sums& sums, int stage, const Take& take) {
      float scale[L::kRows], scores[L::kRows][kOwn];
#pragma unroll
      for (int r = 0; r < L::kRows; ++r) {
        scale[r] = L::Format::kHasScale ? scales[stage * L::kTileKeys + 8 * r] : 1.0f;
      }
      __syncwarp();
      if (end % kStagedStride == 0) mbarrier_arrive(&shared.empty[stage][stream()]);
      GroupScores<L>::join(sums, scores);
#pragma unroll
      for (int r = 0; r < L::kRows; ++r) {
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          if (GroupScores<L>::offers()) take(scores[r][own] * scale[r], 8 * r, own);
        }
      }
    }
    // Stages a score, if it reaches its query's, of the key at `place` in the walk.
    __device__ __forceinline__ void stage_score(float score, std::uint32_t place, int own) {
      if (score < floor[own]) return;
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(end), "f"(score),
                   "r"(place + own * kSecondOwn)
                   : "memory");
      end += kStagedStride;
    }
    // The same for a tile, of which `place` is this lane's first row.
    __device__ __forceinline__ void stage(const Sums& sums, int stage, std::uint32_t place) {
      finish(sums, stage,
             [&](float score, int row, int own) { stage_score(score, place + row, own); });
    }
  };

  // The scorers: scores tiles from `tile` on and appends candidates until the walk ends or lists are
  // to be cut. Returns the next tile. The warpgroups go their own ways.
  __device__ __forceinline__ int scan_until_full(int tiles, int tile) const {
    TileScan scan(*this);
    const auto start = [&] {
      mbarrier_wait(shared.full[place.stage], place.parity);
      scan.multiply();
    };
    const bool sampling = shared.walk.scattered();
    // Of this lane's first row in the walk: the present tile's, and the last one's.
    const int first = GroupScores<L>::first_row(), last = (tiles - 1) * L::kTileKeys + first;
    int position = tile * L::kTileKeys + first;
    std::uint32_t cut = 0;  // whether lists are to be cut after the tile that is started
    int append = position;  // where the warps append, whether they must or not
    for (bool stop = false; position <= last && !stop;) {
      if (position >= append) append += append_period();
      const int pause = min(append, last);
      start();
#pragma unroll 1
      while (position < pause && !any_of_warpgroup(is_nearly_full(scan.end | cut))) {
        const int stage = place.stage;
        typename GroupScores<L>::Sums sums = {};
        scan.sum(sums);
        place = place.next();
        start();
        cut = shared.cut[stage];
        scan.stage(sums, stage, position);
        position += L::kTileKeys;
      }
      typename GroupScores<L>::Sums sums = {};
      scan.sum(sums);
      stop = cut != 0;
      cut = shared.cut[place.stage];
      scan.stage(sums, place.stage, position);
      position += L::kTileKeys;
      place = place.next();
      sampling ? store_sample(scan.end) : append_staged(scan.end);
    }
    return (position - first) / L::kTileKeys;
  }

  // The scorers of a stream, in pieces: score its runs until it ends, or lanes have staged so much or so long
  // that they are to append it, up to `end`. Returns whether it has ended.
  __device__ __forceinline__ bool scan_stream(std::uint32_t& end) const {
    TileScan scan(*this);
    std::uint32_t run;  // the started one
    const auto start = [&] {
      mbarrier_wait(&shared.full[place.stage][stream()], place.parity);
      run = shared.run[place.stage][stream()];
      if (run & kSampleRun) {
        mbarrier_wait(&shared.sample_there[stream()], 0);
        fence_for_wgmma();  // between copies and products
      }
      scan.multiply();
    };
    const auto finish = [&](const typename GroupScores<L>::Sums& sums, int stage,
                            std::uint32_t finished) {
      const std::uint32_t first =
          (finished & ~(kLastRun | kSampleRun)) + GroupScores<L>::first_row() % kBlockRows;
      scan.finish(sums, stage, [&](float score, int row, int own) {
        if (finished & kSampleRun) {
          share(score, static_cast<int>(first) + row, own);
        } else {
          scan.stage_score(score, first + row, own);
        }
      });
    };
    start();
#pragma unroll 1
    for (int left = append_period(); run < kLastRun && (left -= L::kTileKeys) > 0 &&
                                     !any_of_warpgroup(is_nearly_full(scan.end));) {
      const int stage = place.stage;
      const std::uint32_t finished = run;
      typename GroupScores<L>::Sums sums = {};
      scan.sum(sums);
      place = place.next();
      start();
      finish(sums, stage, finished);
    }
    typename GroupScores<L>::Sums sums = {};
    scan.sum(sums);
    finish(sums, place.stage, run);
    place = place.next();
    end = scan.end;
    return run >= kLastRun;
  }
  // A score of the sample goes where all pieces find it.
  __device__ __forceinline__ void share(float score, int place_in_sample, int own) const {
    const KeyWalk& walk = shared.walk;
    if (place_in_sample >= walk.count) return;
    const OwnQuery mine = own_query(own);
    if (mine.query >= shared.item.queries) return;
    const bool inside = takes_part(mine, walk.scattered_key(place_in_sample), score);
    write_slot(sample_slots(p, plan, shared.item.first_query + mine.query) + place_in_sample,
               sample_slot(inside ? score_rank(score) : 0, shared.tag));
  }
  __device__ __forceinline__ bool a_list_is_full() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return lane < kQueries && is_full(shared, lane);
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
    const int count = L::kInPieces ? shared.range.count : shared.walk.count;
    const float tiles = kPlaces / (4.0f * L::kMostStaged) * count / p.top_k;
    return (count <= 4 * p.top_k ? kNever : max(static_cast<int>(min(tiles, 1.0f * kNever)), 1)) *
           L::kTileKeys;
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
