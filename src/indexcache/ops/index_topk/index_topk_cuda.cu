// index_topk on Hopper: scores on the tensor cores, candidates kept as they come, selection exact.
//
// A block owns a group of 8 (or 4) neighbouring queries and walks the keys of their ranges in tiles.
// Four warpgroups score, 64 keys of a tile each with all, half or a quarter of the queries; a fifth
// fetches tiles into a ring in shared memory. Keys are the rows of the matrix product, (head, query) pairs its
// columns, laid out so that a thread holds all heads of its own query: relu, weights and the sum over
// heads stay in the thread's registers, with nothing exchanged between lanes.
//
// Selection. A sample of the keys, one of 64 or 40, is scored first; from it each query takes a threshold
// that about 1.9 k or 1.7 k of its keys will reach. (Or seeds are: the k-th best of them is the threshold.) The
// scan then appends the keys that reach it to a list. If fewer than k did, the group is scanned again
// without threshold; where a list fills up, it is cut to its best k, whose least becomes the threshold.
// So the result is exact whatever the keys are; the sample decides the time only. At last a team of
// threads a query selects the best k of the list, and puts their indices in ascending order by way of a
// bit for each key of a stretch.
//
// Few groups (decode): the range of each is cut in pieces, a block each. The pieces of a group score a part of
// the sample each and take their threshold from all of it; the block that comes last selects from all
// lists. A block waits for another's part of the sample only so long; it does without if it must.
//
// A score's rounding is a function of the number of heads alone: four sums, of the heads h with
// (h / 2) % 4 = 0 .. 3, each ascending in fused multiply-adds; then (s0 + s1) + (s2 + s3), times
// the key's scale.
#include <cuda_runtime.h>

#include "indexcache/kernels/register_share.cuh"
#include "indexcache/ops/index_topk/index_topk_keys.cuh"
#include "indexcache/ops/index_topk/index_topk_selection.cuh"

namespace indexcache {
namespace {

using namespace index_topk_device;

// The fetchers: the keys of one walk after the other. A piece's walk needs nothing of what the scorers know,
// who come back for a second one if its sample misled.
template <class L>
__device__ __forceinline__ void fetch_walks(const IndexTopkCudaParams& p, const IndexTopkPlan& plan,
                                            const KeyMaps& maps, GroupShared<L>& shared) {
  if (threadIdx.x == kScorers && p.num_keys > 0) {
    fetch_map(maps.rows);
    if (L::Format::kHasScale) fetch_map(maps.scales);
  }
  if constexpr (L::kInPieces) {
    const Item item = item_at(p, plan, blockIdx.x);
    const KeyWalk keys = keys_of_group<L>(p, item);
    barrier_sync(kFetchersBarrier, kFetchers);
    barrier_arrive(kScanBarrier, kThreads);
    const int stream = static_cast<int>(threadIdx.x - kScorers) / 32;
    if (stream >= L::kStreams || keys.count == 0) return;
    RunFetcher<L> fetcher{p, maps, p.tokens_per_request > 0 ? item.group : 0, shared};
    StreamRuns runs = piece_runs<L>(keys, item.piece, plan.pieces, stream,
                                    &group_counters(p, item.group)->given_out);
    for (bool again = false;; again = true) {
      fetcher.fetch(keys, runs, keys.count > kShortRange && !again);
      if (again) return;
      mbarrier_wait(&shared.walk_given, 0);
      if (!shared.again) return;
      runs = whole_runs<L>(keys, stream);
    }
  } else {
    RingPlace<L::kStages> place;
    for (int parity = 0;; parity ^= 1) {
      mbarrier_wait(&shared.walk_given, parity);
      if (shared.walk.count < 0) return;
      const int request = p.tokens_per_request > 0 ? shared.request : 0;
      KeyFetcher<L>{p, maps, request, shared}.fetch(shared.walk, place);
      mbarrier_arrive(&shared.walk_fetched);
    }
  }
}

// The scorers: one item after the other; of pieces there are no more than blocks.
template <class L>
__device__ __forceinline__ void select_groups(const IndexTopkCudaParams& p,
                                              const IndexTopkPlan& plan, GroupShared<L>& shared) {
  RingPlace<L::kStages> place;
  const GroupSelection<L> selection{p, plan, shared, place};
  if constexpr (L::kInPieces) {
    selection.run_piece(item_at(p, plan, blockIdx.x));
  } else {
    for (int i = blockIdx.x; i < plan.groups; i += gridDim.x) selection.run(item_at(p, plan, i));
    if (threadIdx.x == 0) {
      KeyWalk none;
      none.count = -1;
      hand_over(shared, none, 0);
    }
  }
}

template <class L>
__global__ void __launch_bounds__(kThreads, 1)
    scan_groups(const __grid_constant__ IndexTopkCudaParams p,
                const __grid_constant__ IndexTopkPlan plan, const __grid_constant__ KeyMaps maps) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  auto& shared = *reinterpret_cast<GroupShared<L>*>(
      memory + (-shared_address(memory) & (alignof(GroupShared<L>) - 1)));
  if (threadIdx.x == kScorers) {
    for (int stage = 0; stage < L::kStages; ++stage) {
      for (int stream = 0; stream < L::kStreams; ++stream) {
        mbarrier_init(&shared.full[stage][stream], L::kFetchArrivals);
        mbarrier_init(&shared.empty[stage][stream], L::kScoreArrivals);
      }
    }
    for (int stream = 0; stream < L::kStreams; ++stream) {
      mbarrier_init(&shared.sample_there[stream], kWarpgroup);
    }
    mbarrier_init(&shared.walk_given, 1);
    mbarrier_init(&shared.walk_fetched, kFetchers);
    shared.walk_parity = 1;
    mbarrier_init_fence();
  }
  // Of a piece the fetchers do not wait for the scorers, who ask for queries meanwhile.
  if (!L::kInPieces) __syncthreads();
  if (threadIdx.x >= kScorers) {
    give_registers<kFetcherRegisters>();
    fetch_walks(p, plan, maps, shared);
  } else {
    take_registers<kScorerRegisters>();
    select_groups(p, plan, shared);
  }
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  index_topk_refused(what, cudaGetErrorString(result));
}

// The keys as tensors. Where there are pages their number is not known; none beyond the table's is
// asked for.
template <class L>
KeyMaps describe_keys(const IndexTopkCudaParams& p) {
  constexpr std::uint64_t kManyPages = std::uint64_t{1} << 31;
  KeyMaps maps{};
  if (p.num_keys == 0) return maps;
  const auto keys = static_cast<std::uint64_t>(p.num_keys);
  const auto stride = static_cast<std::uint64_t>(L::kPaged ? L::kRow : p.key_stride);
  const std::uint64_t plane = L::kPaged ? p.page_stride : keys * stride;
  const std::uint64_t rows = L::kPaged ? kPageKeys : keys, planes = L::kPaged ? kManyPages : 1;
  check(describe_tensor({p.keys, L::kRow, rows, planes, stride, plane, 128, kBlockRows},
                        TensorElement::kByte, true, maps.rows),
        "keys as a tensor");
  if (!L::Format::kHasScale) return maps;
  const void* scales = L::kPaged ? static_cast<const std::uint8_t*>(p.keys) + kPageScales
                                 : static_cast<const void*>(p.key_scale);
  const std::uint64_t bytes = (rows * 4 + 15) / 16 * 16;
  check(describe_tensor({scales, rows, 1, planes, bytes, L::kPaged ? plane : bytes, kBlockRows, 1},
                        TensorElement::kFloat, false, maps.scales),
        "scales as a tensor");
  return maps;
}

template <class L>
void launch_kernel(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  constexpr int kBytes = sizeof(GroupShared<L>) + alignof(GroupShared<L>) - 1024;
  static_assert(kBytes <= kSharedMemory);
  const auto kernel = scan_groups<L>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "shared memory");
  kernel<<<plan.blocks, kThreads, kBytes, stream>>>(p, plan, describe_keys<L>(p));
  check(cudaGetLastError(), "launch");
}

template <class L>
void launch(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  return plan.pieces > 1 ? launch_kernel<InPieces<L>>(p, plan, stream)
                         : launch_kernel<L>(p, plan, stream);
}

template <bool kPaged>
void launch_e4m3(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  const bool few_heads = p.num_heads <= 32;
  switch (plan.columns_per_group) {
    case 1:
      return few_heads ? launch<Layout<E4m3, 1, 1, 32, 5, 8, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 1, 1, 64, 5, 8, kPaged>>(p, plan, stream);
    case 2:
      return few_heads ? launch<Layout<E4m3, 1, 2, 64, 5, 8, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 1, 2, 128, 5, 8, kPaged>>(p, plan, stream);
    case 4:
      return few_heads ? launch<Layout<E4m3, 1, 4, 128, 4, 8, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 2, 2, 128, 8, 8, kPaged>>(p, plan, stream);
    default:
      return p.num_heads <= 16 ? launch<Layout<E4m3, 1, 8, 128, 4, 16, kPaged>>(p, plan, stream)
             : few_heads       ? launch<Layout<E4m3, 2, 4, 128, 7, 16, kPaged>>(p, plan, stream)
                               : launch<Layout<E4m3, 4, 2, 128, 8, 16, kPaged>>(p, plan, stream);
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
  return p.num_heads <= 32 ? launch<Layout<Bf16, 2, 4, 128, 3, 8, false>>(p, plan, stream)
                           : launch<Layout<Bf16, 2, 2, 128, 3, 8, false>>(p, plan, stream);
}

}  // namespace indexcache
