// sparse_mla on Hopper: design and measurements in docs/kernels/sparse_mla.md.
//
// A CTA owns 64 rows, (query, head) pairs of one group, and walks over the group's entries in pairs
// of tiles of 64 keys. Three warpgroups, for e4m3 four:
//   0  logits, softmax and weights of tile 0; out[:, :256] += weights kv of both tiles
//   1  the same of tile 1; out[:, 256:]
//   2  gathers the latents of coming tiles
//   3  converts them from e4m3
// What a pair needs is handed on in this order (0 arrives, 1 waits, or the other way round):
//   left max       the running maximum with tile 0's
//   right max      the same with tile 1's, which tile 0's weights are then raised to
//   left weights   tile 0's, for out[:, 256:]
//   right weights  tile 1's, for out[:, :256]
// So one warpgroup's softmax runs while the other's matrix products do. A CTA takes one piece of
// work after the other, so that the gather of the next overlaps the end of the last; a cluster takes
// one.
#include <algorithm>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/register_share.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_gather.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_output.cuh"

namespace indexcache {
namespace device {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// s (+)= q kv^T over blocks of 64 columns, 16 columns at a time; begun only.
template <int kBegin, int kEnd>
__device__ inline void multiply_blocks(float (&s)[32], std::uint64_t q, std::uint64_t keys,
                                       bool accumulate) {
  wgmma_fence();
#pragma unroll
  for (int block = kBegin; block < kEnd; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int at = (block * kBlockBytes + step * 32) >> 4;
      wgmma_64x64_rows(s, q + at, keys + at, accumulate || block > kBegin || step > 0);
    }
  }
  wgmma_commit();
}

// A tile's logits over one of its parts, once that has arrived.
template <Part kPart>
__device__ inline void begin_scores(float (&s)[32], Shared& shared, int tile, int parity,
                                    bool accumulate) {
  mbarrier_wait(&shared.full[tile][kPart], parity);
  fence_for_wgmma();
  multiply_blocks<kPart == kLeftPart ? 0 : kLeftBlocks, kPart == kLeftPart ? kLeftBlocks : kBlocks>(
      s, rows_operand(shared_address(shared.q)), rows_operand(shared_address(shared.kv[tile])),
      accumulate);
}

// o += weights kv over 16 keys. A launch with a fourth warpgroup has too few registers a thread for
// 256 columns in one instruction.
template <LatentFormat kFormat, typename Weights>
__device__ inline void multiply_values(float (&o)[128], Weights weights, std::uint64_t values) {
  if constexpr (kFormat == LatentFormat::kBFloat16) {
    wgmma_64x256_columns(o, weights, values, true);
  } else {
    constexpr int kNext = (2 * kBlockBytes) >> 4;
    wgmma_64x128_columns(reinterpret_cast<float(&)[64]>(o[0]), weights, values, true);
    wgmma_64x128_columns(reinterpret_cast<float(&)[64]>(o[64]), weights, values + kNext, true);
  }
}

constexpr int kValueStep = (16 * 128) >> 4;  // 16 keys further on, in a descriptor

// o += weights kv, begun only.
template <LatentFormat kFormat>
__device__ inline void begin_values(float (&o)[128], const std::uint32_t (&weights)[16],
                                    const unsigned char* values) {
  const std::uint64_t operand = columns_operand(shared_address(values), kBlockBytes);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    multiply_values<kFormat>(o, weights + 4 * step, operand + step * kValueStep);
  wgmma_commit();
}
template <LatentFormat kFormat>
__device__ inline void begin_values(float (&o)[128], const unsigned char* weights,
                                    const unsigned char* values) {
  const std::uint64_t left = rows_operand(shared_address(weights)),
                      right = columns_operand(shared_address(values), kBlockBytes);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    multiply_values<kFormat>(o, left + 2 * step, right + step * kValueStep);
  wgmma_commit();
}

__device__ inline void release(std::uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

__device__ inline void arrive(BarrierId id) { barrier_arrive(id, 2 * kWarpgroup); }
__device__ inline void await(BarrierId id) { barrier_sync(id, 2 * kWarpgroup); }

// Logits to weights in s and in registers, against the maximum of them and `before`, which is handed
// on before the weights are computed; and what that does to earlier sums.
__device__ inline void weigh_tile(float (&s)[32], std::uint32_t (&weights)[16], float (&rescale)[2],
                                  RowState& state, const float (&before)[2], Shared& shared,
                                  BarrierId handed_on, float scale, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rescale[i] = raise_to_logits(s, i, scale, before[i], state);
    if (thread % 4 == 0) shared.max[row_of(thread, i)] = state.max[i];
  }
  arrive(handed_on);
#pragma unroll
  for (int i = 0; i < 2; ++i) weigh_row(s, i, scale, rescale[i], state);
  pack_weights(s, weights);
}

__device__ inline void read_max(float (&max)[2], const Shared& shared, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) max[i] = shared.max[row_of(thread, i)];
  __syncwarp();  // one of them writes it next
}

// Sums of all tiles to out and lse, or, in a cluster, to where its CTAs read them.
template <EntrySplit kSplit>
__device__ inline void finish_work(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared,
                                   RowState& state, const float (&o)[128], int half, int thread) {
  if (w.tile_begin < w.tile_end) join_rows(state, shared, half, thread);
  if constexpr (kSplit == EntrySplit::kCluster) {
    store_part(o, shared, half, thread);
    if (half == 0) store_rows(state, shared, thread);
  } else {
    const float factor[2] = {state.any[0] ? 1 / state.sum[0] : 0,
                             state.any[1] ? 1 / state.sum[1] : 0};
    if (half == 0) write_lse(p, w, state, thread);
    write_half(p, w, o, factor, half, thread);
  }
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__device__ inline void attend_left(const SparseMlaWgmmaParams& p, Shared& shared) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int thread = threadIdx.x % kWarpgroup;
  const float scale = p.softmax_scale * kLog2E;
  Walk<kKind, kSplit> walk(p);
  for (int n = 0, works = 0; walk.next_work();) {
    const Work& w = walk.work;
    const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
    RowState state;
    float o[128] = {}, s[32];
    std::uint32_t selected = 0;
    if (w.tile_begin < w.tile_end) {
      mbarrier_wait(&shared.q_full, works++ & 1);
      begin_scores<kLeftPart>(s, shared, 0, n & 1, false);
      begin_scores<kRightPart>(s, shared, 0, n & 1, true);
      selected = selected_columns(shared.masks[0], rows, state, thread);
      wgmma_wait<0>();
    }
    for (int tile = w.tile_begin; tile < w.tile_end; tile += 2, ++n) {
      float rescale[2];
      std::uint32_t weights[16];
      wgmma_pin(s);
      if (tile + 2 >= w.tile_end) release(&shared.q_empty);
      const bool poisoned = kUnion && seek_poison(s, shared, 0, thread);
      mask_logits(s, selected);
      weigh_tile(s, weights, rescale, state, state.max, shared, kLeftMax, scale, thread);
      rescale_values(o, rescale);
      if (poisoned) take_out_non_finite(o, shared.kv[0], shared.masks[0], rows, kLeft, thread);
      wgmma_pin(o);
      wgmma_fence();
      begin_values<kFormat>(o, weights, shared.kv[0]);

      // While that runs: the weights that the other half needs.
      await(kRightMax);
#pragma unroll
      for (int i = 0; i < 2; ++i) rescale[i] = raise_max(shared.max[row_of(thread, i)], i, state);
      if (changes(rescale)) {
        std::uint32_t raised[16];  // the product still reads the others
        scale_weights(s, rescale);
        pack_weights(s, raised);
        store_weights(left_weights(shared), raised, thread);
      } else {
        store_weights(left_weights(shared), weights, thread);
      }
      fence_for_wgmma();
      arrive(kLeftWeights);
      wgmma_wait<0>();
      wgmma_pin(o);
      release(&shared.empty[0][kLeftPart]);
      rescale_values(o, rescale);

      await(kRightWeights);
      const auto begin_right_tile = [&] {
        if (kUnion && shared.poisoned[1])
          take_out_non_finite(o, shared.kv[1], shared.masks[1], rows, kLeft, thread);
        wgmma_pin(o);
        wgmma_fence();
        begin_values<kFormat>(o, shared.weights, shared.kv[1]);
      };
      if (tile + 2 < w.tile_end) {
        begin_right_tile();
        begin_scores<kLeftPart>(s, shared, 0, ~n & 1, false);
        wgmma_wait<1>();
        release(&shared.empty[1][kLeftPart]);
        begin_scores<kRightPart>(s, shared, 0, ~n & 1, true);
        selected = selected_columns(shared.masks[0], rows, state, thread);
        wgmma_wait<0>();
        wgmma_pin(o);
      } else {
        if (tile + 1 < w.tile_end) {
          begin_right_tile();
          wgmma_wait<0>();
          wgmma_pin(o);
        }
        release(&shared.empty[1][kLeftPart]);
      }
    }
    finish_work<kSplit>(p, w, shared, state, o, 0, thread);
  }
}

// What is left for the right values where a pair has no tile 1.
template <bool kUnion, LatentFormat kFormat>
__device__ inline void take_lone_tile(float (&o)[128], RowState& state, Shared& shared,
                                      const RowQueries& rows, unsigned char* values, int parity,
                                      int thread) {
  for (std::uint64_t& full : shared.full[1]) mbarrier_wait(&full, parity);
  float max[2], rescale[2];
  await(kLeftMax);
  read_max(max, shared, thread);
#pragma unroll
  for (int i = 0; i < 2; ++i) rescale[i] = raise_max(max[i], i, state);
  arrive(kRightMax);
  rescale_values(o, rescale);
  arrive(kRightWeights);
  await(kLeftWeights);
  if (kUnion && shared.poisoned[0])
    take_out_non_finite(o, values, shared.masks[0], rows, kRight, thread);
  wgmma_pin(o);
  wgmma_fence();
  begin_values<kFormat>(o, left_weights(shared), values);
  wgmma_wait<0>();
  wgmma_pin(o);
  for (std::uint64_t(&empty)[kParts] : shared.empty) release(&empty[kRightPart]);
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__device__ inline void attend_right(const SparseMlaWgmmaParams& p, Shared& shared) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int thread = threadIdx.x % kWarpgroup;
  const float scale = p.softmax_scale * kLog2E;
  unsigned char* const values[2] = {shared.kv[0] + kLeftBlocks * kBlockBytes,
                                    shared.kv[1] + kLeftBlocks * kBlockBytes};
  Walk<kKind, kSplit> walk(p);
  for (int n = 0, works = 0; walk.next_work();) {
    const Work& w = walk.work;
    const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
    RowState state;
    float o[128] = {};
    if (w.tile_begin < w.tile_end) mbarrier_wait(&shared.q_full, works++ & 1);
    int tile = w.tile_begin;
    float rescale[2], before[2];
    for (; tile + 1 < w.tile_end; tile += 2, ++n) {
      float s[32];
      std::uint32_t weights[16];
      begin_scores<kRightPart>(s, shared, 1, n & 1, false);
      begin_scores<kLeftPart>(s, shared, 1, n & 1, true);
      const std::uint32_t selected = selected_columns(shared.masks[1], rows, state, thread);
      wgmma_wait<0>();
      wgmma_pin(s);
      if (tile + 2 >= w.tile_end) release(&shared.q_empty);
      const bool poisoned = kUnion && seek_poison(s, shared, 1, thread);
      mask_logits(s, selected);

      await(kLeftMax);
      read_max(before, shared, thread);
      weigh_tile(s, weights, rescale, state, before, shared, kRightMax, scale, thread);
      store_weights(shared.weights, weights, thread);
      fence_for_wgmma();
      arrive(kRightWeights);
      rescale_values(o, rescale);
      if (poisoned) take_out_non_finite(o, values[1], shared.masks[1], rows, kRight, thread);
      wgmma_pin(o);
      wgmma_fence();
      begin_values<kFormat>(o, weights, values[1]);

      await(kLeftWeights);
      if (kUnion && shared.poisoned[0]) {
        wgmma_wait<0>();
        wgmma_pin(o);
        take_out_non_finite(o, values[0], shared.masks[0], rows, kRight, thread);
        wgmma_pin(o);
      }
      wgmma_fence();
      begin_values<kFormat>(o, left_weights(shared), values[0]);
      wgmma_wait<1>();
      release(&shared.empty[1][kRightPart]);
      wgmma_wait<0>();
      wgmma_pin(o);
      release(&shared.empty[0][kRightPart]);
    }
    if (tile < w.tile_end) {
      release(&shared.q_empty);
      take_lone_tile<kUnion, kFormat>(o, state, shared, rows, values[0], n++ & 1, thread);
    }
    finish_work<kSplit>(p, w, shared, state, o, 1, thread);
  }
}

template <LatentFormat kFormat>
__device__ inline void prepare(Shared& shared) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPairParts; ++i) {
      const TilePart t = part_in_order(i);
      const bool converted = kFormat == LatentFormat::kE4M3;
      mbarrier_init(&shared.full[t.tile][t.part], converted ? kWarpgroup : copy_arrivals(t));
      mbarrier_init(&shared.raw[t.tile][t.part], copy_arrivals(t));
      mbarrier_init(&shared.empty[t.tile][t.part], kWarpgroup / 32);
    }
    mbarrier_init(&shared.q_full, kWarpgroup);
    mbarrier_init(&shared.q_empty, 2 * kWarpgroup / 32);
    mbarrier_init_fence();
  }
  if (threadIdx.x < 2 * 4 * 2) (&shared.masks[0][0][0])[threadIdx.x] = 0;
  __syncthreads();
}

// Three threads of a launch have 3 x 168 registers, 208 + 208 + 88 of them; four 4 x 128.
constexpr int kAttendRegisters = 208;
template <LatentFormat kFormat>
constexpr int kGatherRegisters = kFormat == LatentFormat::kE4M3 ? 48 : 88;
constexpr int kConvertRegisters = 48;

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__global__ void __launch_bounds__(kThreads<kFormat>, 1)
    sparse_mla_kernel(const __grid_constant__ SparseMlaWgmmaParams p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  prepare<kFormat>(shared);
  switch (threadIdx.x / kWarpgroup) {
    case 0:
      take_registers<kAttendRegisters>();
      attend_left<kKind, kFormat, kSplit>(p, shared);
      break;
    case 1:
      take_registers<kAttendRegisters>();
      attend_right<kKind, kFormat, kSplit>(p, shared);
      break;
    case 2:
      give_registers<kGatherRegisters<kFormat>>();
      gather<kKind, kFormat, kSplit>(p, shared);
      break;
    default:
      if constexpr (kFormat == LatentFormat::kE4M3) {
        give_registers<kConvertRegisters>();
        convert<kKind, kSplit>(p, shared);
      }
  }
  if constexpr (kSplit == EntrySplit::kCluster) {
    combine_cluster<kThreads<kFormat> / kWarpgroup>(
        p, find_work<kKind, kSplit>(p, blockIdx.x / kClusterCtas), shared);
  }
}

int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "sparse_mla");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "sparse_mla");
  return count;
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
void launch(const SparseMlaWgmmaParams& p, CUstream_st* stream) {
  const auto kernel = sparse_mla_kernel<kKind, kFormat, kSplit>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared))),
             "sparse_mla");
  std::int64_t ctas = sparse_mla_wgmma_ctas(p);
  if (kSplit == EntrySplit::kWhole) ctas = std::min<std::int64_t>(ctas, multiprocessors());
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kSplit == EntrySplit::kCluster ? kClusterCtas : 1u, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(kThreads<kFormat>);
  config.dynamicSmemBytes = static_cast<int>(sizeof(Shared));
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, p), "sparse_mla");
}

template <EntryKind kKind, LatentFormat kFormat>
void launch(const SparseMlaWgmmaParams& p, CUstream_st* stream) {
  p.split == EntrySplit::kCluster ? launch<kKind, kFormat, EntrySplit::kCluster>(p, stream)
                                  : launch<kKind, kFormat, EntrySplit::kWhole>(p, stream);
}

template <EntryKind kKind>
void launch(const SparseMlaWgmmaParams& p, CUstream_st* stream) {
  p.kv.format == LatentFormat::kE4M3 ? launch<kKind, LatentFormat::kE4M3>(p, stream)
                                     : launch<kKind, LatentFormat::kBFloat16>(p, stream);
}

}  // namespace
}  // namespace device

void sparse_mla_wgmma_cuda(const SparseMlaWgmmaParams& p, CUstream_st* stream) {
  if (p.num_groups == 0) return;
  p.kind == EntryKind::kUnion ? device::launch<EntryKind::kUnion>(p, stream)
                              : device::launch<EntryKind::kIndices>(p, stream);
}

}  // namespace indexcache
