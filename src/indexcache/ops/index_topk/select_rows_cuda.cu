#include <cub/block/block_scan.cuh>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/score_order.cuh"
#include "indexcache/ops/index_topk/select_rows_params.h"

namespace indexcache {
namespace {

constexpr int kThreads = 512;
constexpr int kPerThread = 4;  // neighbouring keys, or bins, of one thread
constexpr int kTile = kThreads * kPerThread;
constexpr int kRadixBits = 11;
constexpr int kBins = 1 << kRadixBits;
static_assert(kBins == kTile, "a thread has kPerThread bins");

using Scan = cub::BlockScan<std::uint32_t, kThreads>;

struct Shared {
  typename Scan::TempStorage scan;
  std::uint32_t histogram[kBins];
  std::uint32_t bin, above;
};

// The bin in which the wanted-th highest of all counted keys lies, and how many lie above the bin.
// Thread 0 has the highest bins.
__device__ void find_bin(Shared& shared, std::uint32_t wanted) {
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  std::uint32_t count = 0, before = 0;
  for (int i = 0; i < kPerThread; ++i) count += shared.histogram[top - i];
  Scan(shared.scan).ExclusiveSum(count, before);
  if (before < wanted && wanted <= before + count) {
    int bin = top;
    while (before + shared.histogram[bin] < wanted) before += shared.histogram[bin--];
    shared.bin = static_cast<std::uint32_t>(bin);
    shared.above = before;
  }
  __syncthreads();
}

struct Threshold {
  std::uint32_t rank;  // of the k-th best key
  std::uint32_t ties;  // how many keys of just that rank are among the k best
};

// Radix select, from the highest bits down.
__device__ Threshold find_threshold(Shared& shared, const float* scores, std::int32_t count,
                                    std::uint32_t wanted) {
  std::uint32_t prefix = 0, mask = 0;
  constexpr int kShifts[] = {32 - kRadixBits, 32 - 2 * kRadixBits, 0};
  for (const int shift : kShifts) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared.histogram[bin] = 0;
    __syncthreads();
    // The last two passes share a bit: it is settled, so equal in all that the last one counts.
    for (std::int32_t i = threadIdx.x; i < count; i += kThreads) {
      const std::uint32_t rank = device::score_rank(scores[i]);
      if ((rank & mask) == prefix) atomicAdd(&shared.histogram[(rank >> shift) % kBins], 1u);
    }
    __syncthreads();
    find_bin(shared, wanted);
    wanted -= shared.above;
    prefix |= shared.bin << shift;
    mask |= static_cast<std::uint32_t>(kBins - 1) << shift;
  }
  return {prefix, wanted};
}

// Writes the keys above the threshold and the first of those at it, in the keys' order.
__device__ void write_selected(Shared& shared, const float* scores, std::int32_t count,
                               const Threshold& threshold, std::int32_t* out) {
  std::uint32_t above = 0, ties = 0;  // of the tiles before
  for (std::int32_t tile = 0; tile < count; tile += kTile) {
    const std::int32_t first = tile + static_cast<std::int32_t>(threadIdx.x) * kPerThread;
    std::uint32_t ranks[kPerThread];
    std::uint32_t mine = 0;  // keys above in the high half, at the threshold in the low half
    for (int i = 0; i < kPerThread; ++i) {
      ranks[i] = first + i < count ? device::score_rank(scores[first + i]) : 0;
      if (first + i >= count) continue;
      mine += ranks[i] > threshold.rank ? 0x10000u : ranks[i] == threshold.rank ? 1u : 0u;
    }
    std::uint32_t before = 0, all = 0;
    Scan(shared.scan).ExclusiveSum(mine, before, all);
    std::uint32_t above_before = above + (before >> 16), ties_before = ties + (before & 0xFFFFu);
    for (int i = 0; i < kPerThread && first + i < count; ++i) {
      const bool is_above = ranks[i] > threshold.rank, is_tie = ranks[i] == threshold.rank;
      if (is_above || (is_tie && ties_before < threshold.ties)) {
        out[above_before + min(ties_before, threshold.ties)] = first + i;
      }
      above_before += is_above;
      ties_before += is_tie;
    }
    above += all >> 16;
    ties += all & 0xFFFFu;
    __syncthreads();  // the scan's storage is used again
  }
}

__global__ void __launch_bounds__(kThreads) select_rows(SelectRowsParams params) {
  __shared__ Shared shared;
  const std::int64_t query = blockIdx.x;
  const std::int32_t start = params.start[query];
  const std::int32_t count = max(params.end[query] - start, 0);
  const auto k = static_cast<std::int32_t>(params.top_k);
  std::int32_t* out = params.out + query * params.top_k;
  if (count <= k) {
    for (std::int32_t i = threadIdx.x; i < k; i += kThreads) out[i] = i < count ? i : -1;
    return;
  }
  const float* scores = params.scores + query * params.num_keys + start;
  const Threshold threshold = find_threshold(shared, scores, count, static_cast<std::uint32_t>(k));
  write_selected(shared, scores, count, threshold, out);
}

}  // namespace

void select_rows_cuda(const SelectRowsParams& params, CUstream_st* stream) {
  if (params.num_queries == 0 || params.top_k == 0) return;
  select_rows<<<static_cast<unsigned>(params.num_queries), kThreads, 0, stream>>>(params);
  check_launch("select_rows");
}

}  // namespace indexcache
