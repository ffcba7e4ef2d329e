// sparse_mla on Hopper: design and measurements in docs/kernels/sparse_mla.md.
//
// A CTA owns 64 rows, (query, head) pairs of one group, and walks over the group's entries in tiles of 64 keys. Three warpgroups:
//   0  logits = q kv^T, softmax, weights to registers and shared memory, out[:, :256] += weights kv
//   1  out[:, 256:] += weights kv
//   2  gathers the latents of coming tiles into the two stages
// A stage goes full (gathered) -> scores -> values of both halves -> empty. Between the two consuming warpgroups the weights
// go ready (0 arrives, 1 waits) and free (1 arrives, 0 waits).
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_gather.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_output.cuh"

namespace indexcache {
namespace device {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline void load_queries(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared) {
  const auto* q = static_cast<const unsigned char*>(p.q) + w.first_row * (kBlocks * 128);
  const std::uint32_t to = shared_address(shared.q);
  for (int at = threadIdx.x; at < kTileRows * kBlocks * 8; at += 2 * kWarpgroup) {
    const int row = at / (kBlocks * 8), chunk = at % (kBlocks * 8);
    const bool present = row < w.rows;
    copy_16(to + chunk / 8 * kBlockBytes + swizzled_offset(row, chunk % 8),
            q + (present ? row * kBlocks * 128 + chunk * 16 : 0), present);
  }
  wait_for_copies();
  fence_for_wgmma();
  barrier_sync(kConsumersDone, 2 * kWarpgroup);
}

// s = q kv^T: 9 blocks of 64 columns, 16 at a time.
__device__ inline void multiply_scores(float (&s)[32], std::uint64_t q, std::uint64_t keys) {
  wgmma_fence();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int at = (block * kBlockBytes + step * 32) >> 4;
      wgmma_64x64_rows(s, q + at, keys + at, block + step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(s);
}

constexpr int kValueStep = (16 * 128) >> 4;  // 16 keys further on, in a descriptor

__device__ inline void multiply_values(float (&o)[128], const std::uint32_t (&weights)[16],
                                       std::uint64_t values) {
  wgmma_pin(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma_64x256_columns(o, weights + 4 * step, values + step * kValueStep, true);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(o);
}
__device__ inline void multiply_values(float (&o)[128], std::uint64_t weights,
                                       std::uint64_t values) {
  wgmma_pin(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma_64x256_columns(o, weights + 2 * step, values + step * kValueStep, true);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(o);
}

__device__ inline void release_stage(std::uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void score_and_take_left(const SparseMlaWgmmaParams& p, const Work& w,
                                           Shared& shared) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int thread = threadIdx.x % kWarpgroup;
  const float scale = p.softmax_scale * kLog2E;
  const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
  RowState state;
  float o[128] = {};
  for (int tile = w.tile_begin, n = 0; tile < w.tile_end; ++tile, ++n) {
    const int stage = n % kStages;
    mbarrier_wait(&shared.full[stage], n / kStages & 1);
    fence_for_wgmma();
    float s[32];
    multiply_scores(s, rows_operand(shared_address(shared.q)),
                    rows_operand(shared_address(shared.kv[stage])));
    bool poisoned = false;
    if constexpr (kUnion) poisoned = barrier_any(kLeft, kWarpgroup, holds_non_finite(s));
    float rescale[2];
    std::uint32_t weights[16];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      state.any[i] |= mask_row(s, i, shared.masks[stage][rows.query[i]], thread);
      rescale[i] = weigh_row(s, i, scale, state);
    }
    pack_weights(s, weights);
    if (n > 0) barrier_sync(kWeightsFree, 2 * kWarpgroup);
    store_weights(shared.weights, weights, thread);
    if (thread % 4 == 0) {
      shared.rescale[row_of(thread, 0)] = rescale[0];
      shared.rescale[row_of(thread, 1)] = rescale[1];
    }
    if (thread == 0) shared.poisoned = poisoned;
    fence_for_wgmma();
    barrier_arrive(kWeightsReady, 2 * kWarpgroup);
    rescale_values(o, rescale);
    if (kUnion && poisoned)
      take_out_non_finite(o, shared.kv[stage], shared.masks[stage], rows, kLeft, thread);
    multiply_values(o, weights, columns_operand(shared_address(shared.kv[stage]), kBlockBytes));
    release_stage(&shared.empty[stage]);
  }
  if (w.tile_begin < w.tile_end) barrier_sync(kWeightsFree, 2 * kWarpgroup);
  publish_rows(state, shared, thread);
  barrier_sync(kConsumersDone, 2 * kWarpgroup);
  if constexpr (kSplit == EntrySplit::kCluster) {
    store_part(o, shared, 0, thread);
  } else {
    write_lse(p, w, shared, thread);
    write_half(p, w, o, shared, 0, thread);
  }
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void take_right(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup;
  const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
  float o[128] = {};
  for (int tile = w.tile_begin, n = 0; tile < w.tile_end; ++tile, ++n) {
    const int stage = n % kStages;
    unsigned char* values = shared.kv[stage] + 4 * kBlockBytes;
    mbarrier_wait(&shared.full[stage], n / kStages & 1);
    fence_for_wgmma();
    barrier_sync(kWeightsReady, 2 * kWarpgroup);
    const float rescale[2] = {shared.rescale[row_of(thread, 0)], shared.rescale[row_of(thread, 1)]};
    rescale_values(o, rescale);
    if (kKind == EntryKind::kUnion && shared.poisoned) {
      take_out_non_finite(o, values, shared.masks[stage], rows, kRight, thread);
    }
    multiply_values(o, rows_operand(shared_address(shared.weights)),
                    columns_operand(shared_address(values), kBlockBytes));
    barrier_arrive(kWeightsFree, 2 * kWarpgroup);
    release_stage(&shared.empty[stage]);
  }
  barrier_sync(kConsumersDone, 2 * kWarpgroup);
  if constexpr (kSplit == EntrySplit::kCluster) {
    store_part(o, shared, 1, thread);
  } else {
    write_half(p, w, o, shared, 1, thread);
  }
}

template <LatentFormat kFormat>
__device__ inline void prepare(Shared& shared) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.full[stage], kFullArrivals<kFormat>);
      mbarrier_init(&shared.empty[stage], 2 * kWarpgroup / 32);
    }
    mbarrier_init_fence();
  }
  if (threadIdx.x < kStages * 8) (&shared.masks[0][0][0])[threadIdx.x] = 0;
  __syncthreads();
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_kernel(const __grid_constant__ SparseMlaWgmmaParams p) {
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory + (-shared_address(memory) & 1023));
  const Work w = find_work<kKind, kSplit>(p);
  if (w.rows <= 0) return;  // so for the whole cluster
  prepare<kFormat>(shared);
  // A launch has 3 x 168 registers for three threads: 208 + 168 + 128.
  switch (threadIdx.x / kWarpgroup) {
    case 0:
      take_registers<208>();
      load_queries(p, w, shared);
      score_and_take_left<kKind, kSplit>(p, w, shared);
      break;
    case 1:
      load_queries(p, w, shared);
      take_right<kKind, kSplit>(p, w, shared);
      break;
    default:
      give_registers<128>();
      if constexpr (kFormat == LatentFormat::kBFloat16) {
        gather_bf16<kKind>(p, w, shared);
      } else {
        gather_e4m3<kKind>(p, w, shared);
      }
  }
  if constexpr (kSplit == EntrySplit::kCluster) combine_cluster(p, w, shared);
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
cudaError_t launch(const SparseMlaWgmmaParams& p, cudaStream_t stream) {
  const auto kernel = sparse_mla_kernel<kKind, kFormat, kSplit>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kSplit == EntrySplit::kCluster ? kClusterCtas : 1u, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(sparse_mla_wgmma_ctas(p)));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, p);
}

template <EntryKind kKind, LatentFormat kFormat>
cudaError_t launch(const SparseMlaWgmmaParams& p, cudaStream_t stream) {
  return p.split == EntrySplit::kCluster ? launch<kKind, kFormat, EntrySplit::kCluster>(p, stream)
                                         : launch<kKind, kFormat, EntrySplit::kWhole>(p, stream);
}

template <EntryKind kKind>
cudaError_t launch(const SparseMlaWgmmaParams& p, cudaStream_t stream) {
  return p.kv.format == LatentFormat::kE4M3 ? launch<kKind, LatentFormat::kE4M3>(p, stream)
                                            : launch<kKind, LatentFormat::kBFloat16>(p, stream);
}

}  // namespace
}  // namespace device

int sparse_mla_wgmma(const SparseMlaWgmmaParams& p, void* stream) {
  if (p.num_groups == 0) return cudaSuccess;
  const auto queue = static_cast<cudaStream_t>(stream);
  return p.kind == EntryKind::kUnion ? device::launch<EntryKind::kUnion>(p, queue)
                                     : device::launch<EntryKind::kIndices>(p, queue);
}

}  // namespace indexcache
