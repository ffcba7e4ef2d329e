// index_topk on Hopper: scores on the tensor cores, candidates kept as they come, selection exact.
//
// A block of two warpgroups owns a group of 8 (or 4) neighbouring queries and walks the keys of
// their ranges in tiles of 128. Keys are the rows of the matrix product, (head, query) pairs its
// columns, laid out so that a thread holds all heads of its own queries: relu, weights and the sum
// over heads stay in the thread's registers, with nothing exchanged between lanes. Every warp
// fetches its own 16 keys of a tile into its own ring in shared memory, so warps wait for no other.
//
// Selection. A sample of the keys, one of 64, is scored first; from it each query takes a threshold
// that about 2.2 k of its keys will reach. The scan then appends the keys that reach it to a list.
// If fewer than k did, the group is scanned again without threshold; where a list fills up, it is
// cut to its best k, whose least becomes the threshold. So the result is exact whatever the keys
// are; the sample decides the time only. At last a warp a query selects the best k of the list, and
// the block writes their indices in ascending order, by way of a bit for each key of the range.
//
// Few groups (decode): the range of each is cut in pieces, a block each. Every block draws the same
// sample of the whole range, hence the same thresholds, scans its piece, and adds the best k of its
// list to the query's merged list. The block that comes last selects from that, or where the sample
// misled, scans the whole range as above. No block waits for another.
//
// A score's rounding is a function of the number of heads alone: four sums, of the heads h with
// (h / 2) % 4 = 0 .. 3, each ascending in fused multiply-adds; then (s0 + s1) + (s2 + s3), times
// the key's scale.
#include <cuda_runtime.h>

#include "indexcache/ops/index_topk/index_topk_candidates.cuh"

namespace indexcache {
namespace {

using namespace index_topk_device;

// Where the pieces of a query meet: [M][pieces * k] keys, their number, and how many pieces of a
// group are in.
struct MergeLists {
  RankedKey* keys;
  int* counts;
  unsigned* arrived;
  int pieces;
};

// One block's work on one item.
template <class L>
struct GroupSelection {
  static constexpr int kQueries = L::kQueries;

  const IndexTopkCudaParams& p;
  Item item;
  std::uint8_t* shared;  // queries, then the warps' rings; at last the bits of the indices
  GroupState& state;
  RankedKey* lists;  // [kQueries][kCandidateCapacity]
  MergeLists merge;
  GroupCandidates<L> candidates{p, item, shared, state, lists};

  // The block: writes the query's row of the result, the keys of the list that reach the threshold.
  __device__ __forceinline__ void write_row(int query, const RankedKey* list, int size,
                                            RankedKey threshold) const {
    std::int32_t* out = p.out + std::int64_t{item.first_query + query} * p.top_k;
    write_ascending<kThreads>(list, size, threshold, state.start[query], candidates.range(query),
                              out, reinterpret_cast<unsigned*>(shared), L::kSharedBytes / 4,
                              state.select[0]);
    for (int i = min(p.top_k, candidates.range(query)) + threadIdx.x; i < p.top_k; i += kThreads)
      out[i] = -1;
  }

  // What the best `taken` of a list reach.
  template <class Team>
  __device__ __forceinline__ RankedKey reached_by(const Team& team, const RankedKey* list, int size,
                                                  int taken, SelectScratch& scratch) const {
    return size > taken ? select_threshold(team, list, size, taken, scratch) : kEveryKey;
  }

  // Writes the rows of all queries that are not written, from their lists.
  __device__ __forceinline__ void finish() const {
    const int warp = threadIdx.x / 32;
    if (warp < item.queries && !state.written[warp]) {
      const RankedKey threshold =
          reached_by(WarpTeam{}, lists + warp * kCandidateCapacity, state.count[warp],
                     min(p.top_k, candidates.range(warp)), state.select[warp]);
      if (threadIdx.x % 32 == 0) state.threshold[warp] = threshold;
    }
    __syncthreads();
    for (int query = 0; query < item.queries; ++query) {
      if (state.written[query]) continue;
      write_row(query, lists + query * kCandidateCapacity, state.count[query],
                state.threshold[query]);
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
    __syncthreads();
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

  // This item's piece of the keys.
  __device__ __forceinline__ KeyWalk piece_of(KeyWalk keys) const {
    const int tiles = (keys.count + kTileKeys - 1) / kTileKeys;
    const int length = (tiles + merge.pieces - 1) / merge.pieces * kTileKeys;
    const int first = min(item.piece * length, keys.count);
    return {keys.first + first, min(length, keys.count - first)};
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
    return !__syncthreads_or(again);
  }

  // A warp: adds the best of the query's list, k at most, to the merged list.
  __device__ __forceinline__ void publish(int query) const {
    const RankedKey* list = lists + query * kCandidateCapacity;
    const int size = state.count[query], lane = threadIdx.x % 32;
    SelectScratch& scratch = state.select[query];
    const RankedKey threshold = reached_by(WarpTeam{}, list, size, p.top_k, scratch);
    const std::int64_t row = item.first_query + query;
    int at = 0;
    if (lane == 0) at = atomicAdd(&merge.counts[row], min(size, p.top_k));
    at = __shfl_sync(kAllLanes, at, 0);
    RankedKey* to = merge.keys + row * merge.pieces * p.top_k + at;
    for_each_key(WarpTeam{}, list, size, [&](RankedKey key, bool valid) {
      const bool take = valid && key >= threshold;
      const unsigned takers = __ballot_sync(kAllLanes, take);
      if (take) to[__popc(takers & ((1u << lane) - 1))] = key;
      to += __popc(takers);
    });
    __threadfence();
  }

  // After the piece was scanned. True if this block, the last of its group, must scan all keys.
  __device__ __forceinline__ bool merge_pieces() const {
    const int warp = threadIdx.x / 32;
    if (warp < item.queries) publish(warp);
    __syncthreads();
    if (threadIdx.x == 0) {
      state.last =
          atomicAdd(&merge.arrived[item.group], 1u) + 1 == static_cast<unsigned>(merge.pieces);
    }
    __syncthreads();
    if (!state.last) return false;
    __threadfence();
    bool again = false;
    for (int query = 0; query < item.queries; ++query) {
      const std::int64_t row = item.first_query + query;
      const int size = *static_cast<volatile int*>(&merge.counts[row]);
      const bool complete = size >= min(p.top_k, candidates.range(query));
      if (complete) {
        const RankedKey* list = merge.keys + row * merge.pieces * p.top_k;
        write_row(query, list, size,
                  reached_by(BlockTeam<kThreads>{}, list, size,
                             min(p.top_k, candidates.range(query)), state.select[0]));
      }
      if (threadIdx.x == 0) {
        state.settled[query] = state.written[query] = complete;
        state.threshold[query] = complete ? kNoKey : kEveryKey;
        state.count[query] = 0;
      }
      again |= !complete;
    }
    __syncthreads();
    if (again) candidates.scores.stage_queries();  // the result's bits stood in their place
    __syncthreads();
    return again;
  }

  __device__ __forceinline__ void run() const {
    const KeyWalk keys = open_group();
    const bool split = merge.pieces > 1;
    if (keys.count == 0 && item.piece > 0) {
      __syncthreads();  // the next item changes the state
      return;
    }
    candidates.scores.stage_queries();
    __syncthreads();
    // Rounds: the sample; the scan; where the sample misled, the scan that takes every key.
    for (int round = keys.count > kCandidateLimit ? 0 : 1; keys.count > 0; ++round) {
      KeyWalk walk = keys;
      if (round == 0) walk = sampled_keys(keys, split ? kMostSampledByPiece : kMostSampled);
      if (round == 1 && split) walk = piece_of(keys);
      candidates.scan(walk);
      if (round == 0) {
        candidates.choose_thresholds();
      } else if (round == 1 && split) {
        if (!merge_pieces()) return;
      } else if (settle()) {
        break;
      }
    }
    finish();
    __syncthreads();  // the next item changes the state
  }
};

template <class L>
__global__ void __launch_bounds__(kThreads, 1)
    scan_groups(const __grid_constant__ IndexTopkCudaParams p,
                const __grid_constant__ IndexTopkPlan plan) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  __shared__ GroupState state;
  auto* workspace = static_cast<std::uint8_t*>(p.workspace);
  auto* lists = reinterpret_cast<RankedKey*>(workspace) +
                std::int64_t{blockIdx.x} * L::kQueries * kCandidateCapacity;
  auto* counters = reinterpret_cast<int*>(workspace + plan.lists_bytes + plan.merge_bytes);
  const MergeLists merge{reinterpret_cast<RankedKey*>(workspace + plan.lists_bytes), counters,
                         reinterpret_cast<unsigned*>(counters + p.num_queries), plan.pieces};
  for (int i = blockIdx.x; i < plan.groups * plan.pieces; i += gridDim.x) {
    // Later queries usually have more keys: the longest first.
    const int group = plan.groups - 1 - i / plan.pieces, first = group * plan.queries_per_group;
    const Item item{group, i % plan.pieces, first,
                    min(plan.queries_per_group, p.num_queries - first)};
    GroupSelection<L>{p, item, shared, state, lists, merge}.run();
  }
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  index_topk_refused(what, cudaGetErrorString(result));
}

template <class L>
void launch(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  constexpr int kBytes = L::kSharedBytes;
  const auto kernel = scan_groups<L>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "shared memory");
  if (plan.counter_bytes > 0) {
    auto* counters = static_cast<std::uint8_t*>(p.workspace) + plan.lists_bytes + plan.merge_bytes;
    check(cudaMemsetAsync(counters, 0, plan.counter_bytes, stream), "counters");
  }
  kernel<<<plan.blocks, kThreads, kBytes, stream>>>(p, plan);
  check(cudaGetLastError(), "launch");
}

template <bool kPaged>
void launch_e4m3(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  const bool few_heads = p.num_heads <= 32;
  switch (plan.columns_per_group) {
    case 1:
      return few_heads ? launch<Layout<E4m3, 1, 32, 1, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 1, 64, 1, kPaged>>(p, plan, stream);
    case 2:
      return few_heads ? launch<Layout<E4m3, 2, 64, 1, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 2, 128, 1, kPaged>>(p, plan, stream);
    case 4:
      return few_heads ? launch<Layout<E4m3, 4, 128, 1, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 4, 128, 2, kPaged>>(p, plan, stream);
    default:
      return p.num_heads <= 16 ? launch<Layout<E4m3, 8, 128, 1, kPaged>>(p, plan, stream)
                               : launch<Layout<E4m3, 8, 128, 2, kPaged>>(p, plan, stream);
  }
}

}  // namespace

void index_topk_cuda(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  if (plan.groups == 0) return;
  check_workspace(p, plan);
  if (p.format == IndexKeyFormat::kE4M3) {
    return p.block_table != nullptr ? launch_e4m3<true>(p, plan, stream)
                                    : launch_e4m3<false>(p, plan, stream);
  }
  return p.num_heads <= 32 ? launch<Layout<Bf16, 4, 128, 1, false>>(p, plan, stream)
                           : launch<Layout<Bf16, 4, 128, 2, false>>(p, plan, stream);
}

}  // namespace indexcache
