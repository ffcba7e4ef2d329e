// The candidates of a group of queries: a scan of keys that appends those whose scores reach the
// queries' thresholds, and where the thresholds come from.
#pragma once

#include "indexcache/ops/index_topk/index_topk_scores.cuh"

namespace indexcache::index_topk_device {

// What the block knows of its queries.
struct GroupState {
  RankedKey threshold[8];
  int count[8];  // candidates in the list
  int start[8], end[8];
  bool settled[8];  // the list holds all that it needs, or the result is written
  bool written[8];
  bool last;  // this block's piece was the last of its group
  SelectScratch select[kWarps];
};

__device__ __forceinline__ int append(int* count, bool wanted) {
  int place = 0;
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %2, 0;\n@wanted atom.shared.add.s32 %0, [%1], "
      "1;\n}\n"
      : "+r"(place)
      : "r"(shared_address(count)), "r"(static_cast<int>(wanted))
      : "memory");
  return place;
}

template <class L>
struct GroupCandidates {
  static constexpr int kQueries = L::kQueries, kOwn = L::kOwn, kSums = L::kSums;
  static constexpr int kWeights = L::kWeights, kSteps = L::kSteps, kStages = L::kStages;
  static constexpr int kRow = L::kRow;

  const IndexTopkCudaParams& p;
  Item item;
  std::uint8_t* shared;
  GroupState& state;
  RankedKey* lists;  // [kQueries][kCandidateCapacity]
  GroupScores<L> scores{p, item, shared};

  // Appends what reaches the thresholds. place is the thread's first key's place in the walk.
  __device__ __forceinline__ void offer(const KeyWalk& walk, int place,
                                        const float (&score)[2][kOwn],
                                        const float (&floor)[kOwn]) const {
    bool any = p.scores != nullptr;
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) any |= !(score[i % 2][i / 2] < floor[i / 2]);
    if (!any) return;
    int index[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool real = GroupScores<L>::offers(r) && place + 8 * r < walk.count;
      index[r] = real ? walk.key(place + 8 * r) : -1;
    }
    RankedKey key[2 * kOwn];
    bool wanted[2 * kOwn];
    int slot[2 * kOwn];
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) {
      const int query = L::column_query(threadIdx.x % 4, i / 2), at = index[i % 2];
      const float value = score[i % 2][i / 2];
      key[i] = ranked_key(value, at);
      const bool inside = at >= state.start[query] && at < state.end[query];
      wanted[i] = inside && key[i] >= state.threshold[query];
      if (p.scores != nullptr && inside) {
        p.scores[std::int64_t{item.first_query + query} * p.num_keys + at] = value;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) {
      slot[i] = append(&state.count[L::column_query(threadIdx.x % 4, i / 2)], wanted[i]);
    }
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) {
      const int query = L::column_query(threadIdx.x % 4, i / 2);
      if (wanted[i]) lists[query * kCandidateCapacity + slot[i]] = key[i];
    }
  }

  __device__ __forceinline__ void load_floors(float (&floor)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      floor[i] = threshold_score(state.threshold[L::column_query(threadIdx.x % 4, i)]);
    }
  }

  // The whole block: cuts lists that may overflow before the next look.
  __device__ __forceinline__ void look_at_counts() const {
    const int warp = threadIdx.x / 32;
    const bool full = threadIdx.x < kQueries && state.count[threadIdx.x] > kCandidateLimit &&
                      !state.settled[threadIdx.x];
    if (!__syncthreads_or(full)) return;
    if (warp < kQueries && state.count[warp] > kCandidateLimit && !state.settled[warp]) {
      RankedKey* list = lists + warp * kCandidateCapacity;
      const int size = state.count[warp];
      const RankedKey threshold =
          select_threshold(WarpTeam{}, list, size, p.top_k, state.select[warp]);
      const int kept = compact(list, size, threshold);
      if (threadIdx.x % 32 == 0) {
        state.count[warp] = kept;
        state.threshold[warp] = threshold;
      }
    }
    __syncthreads();
  }

  // Scores the keys of the walk and appends candidates.
  __device__ __forceinline__ void scan(const KeyWalk walk) const {
    float weights[kWeights], floor[kOwn];
    scores.load_weights(weights);
    load_floors(floor);
    const std::uint64_t queries = rows_operand(shared_address(shared));
    const int tiles = (walk.count + kTileKeys - 1) / kTileKeys;
    const int row = threadIdx.x / 32 * kWarpKeys + threadIdx.x % 32 / 4;
#pragma unroll
    for (int tile = 0; tile < kStages - 1; ++tile) scores.fetch(walk, tile);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile % kTilesPerLook == 0) {
        look_at_counts();
        load_floors(floor);
      }
      wait_for_copies<kStages - 2>();
      __syncwarp();
      std::uint32_t a[kSteps][4];
      scores.load_fragments(tile, a);
      float scale[2] = {1.0f, 1.0f};
      if (scores.has_scales()) {
        const auto* scales = reinterpret_cast<const float*>(scores.stage(tile) + kWarpKeys * kRow);
        scale[0] = scales[threadIdx.x % 32 / 4];
        scale[1] = scales[threadIdx.x % 32 / 4 + 8];
      }
      scores.fetch(walk, tile + kStages - 1);
      float sums[2][kOwn][kSums] = {};
      scores.score_tile(queries, a, weights, sums);
      float score[2][kOwn];
#pragma unroll
      for (int i = 0; i < 2 * kOwn; ++i) {
        score[i % 2][i / 2] = GroupScores<L>::total(sums[i % 2][i / 2]) * scale[i % 2];
      }
      offer(walk, tile * kTileKeys + row, score, floor);
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  __device__ __forceinline__ int range(int query) const {
    return max(0, state.end[query] - state.start[query]);
  }

  // After the sample: the threshold that some more than k keys of the query will reach. The number
  // sampled among the best k is about mean, with deviation sqrt(mean) at most.
  template <class Team>
  __device__ __forceinline__ void choose_threshold(const Team& team, int query,
                                                   SelectScratch& scratch) const {
    const int sampled = state.count[query], keys = range(query);
    RankedKey threshold = kEveryKey;
    if (keys > kCandidateLimit) {
      const float mean = static_cast<float>(p.top_k) * sampled / keys;
      const int wanted = static_cast<int>(mean + 6 * sqrtf(mean)) + 4;
      if (wanted < sampled) {
        threshold =
            select_threshold(team, lists + query * kCandidateCapacity, sampled, wanted, scratch);
      }
    }
    team.sync();
    if (team.rank == 0) {
      state.threshold[query] = threshold;
      state.count[query] = 0;
    }
  }
  __device__ __forceinline__ void choose_thresholds() const {
    if (kQueries <= 2) {  // the whole block for each: sooner done
      for (int query = 0; query < item.queries; ++query) {
        choose_threshold(BlockTeam<kThreads>{}, query, state.select[0]);
      }
    } else if (threadIdx.x / 32 < item.queries) {
      choose_threshold(WarpTeam{}, threadIdx.x / 32, state.select[threadIdx.x / 32]);
    }
    __syncthreads();
  }
};

}  // namespace indexcache::index_topk_device
