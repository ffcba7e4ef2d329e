// sparse_mla on Hopper: design and measurements in docs/kernels/sparse_mla.md.
//
// A CTA owns 64 rows, (query, head) pairs of one group, and walks over the group's entries in tiles
// of 64 keys. Three warpgroups:
//   0  logits = q kv^T, softmax, weights to registers and shared memory, out[:, :256] += weights kv
//   1  out[:, 256:] += weights kv
//   2  gathers the latents of coming tiles into the two stages
// A stage goes full (gathered) -> scores -> values of both halves -> empty. Weights go from
// warpgroup 0 to 1 through shared memory: published (0 arrives, 1 waits), read (1 arrives, 0
// waits). A CTA takes one piece of work after the other, so that the gather of the next overlaps
// the end of the last; a cluster takes one.
#include <algorithm>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_gather.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_output.cuh"

namespace indexcache {
namespace device {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// s (+)= q kv^T over blocks of 64 columns, 16 columns at a time.
template <int kBegin, int kEnd>
__device__ inline void multiply_blocks(float (&s)[32], std::uint64_t q, std::uint64_t keys) {
  wgmma_fence();
#pragma unroll
  for (int block = kBegin; block < kEnd; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int at = (block * kBlockBytes + step * 32) >> 4;
      wgmma_64x64_rows(s, q + at, keys + at, block + step > 0);
    }
  }
  wgmma_commit();
}

// The tile's logits, as its parts arrive.
__device__ inline void multiply_scores(float (&s)[32], Shared& shared, int stage, int parity) {
  const std::uint64_t q = rows_operand(shared_address(shared.q));
  const std::uint64_t keys = rows_operand(shared_address(shared.kv[stage]));
  mbarrier_wait(&shared.full[stage][0], parity);
  fence_for_wgmma();
  multiply_blocks<0, kFirstBlocks>(s, q, keys);
  mbarrier_wait(&shared.full[stage][1], parity);
  fence_for_wgmma();
  multiply_blocks<kFirstBlocks, kBlocks>(s, q, keys);
  wgmma_wait<0>();
  wgmma_pin(s);
}

constexpr int kValueStep = (16 * 128) >> 4;  // 16 keys further on, in a descriptor

// o += weights kv, begun only: wait with finish_values.
__device__ inline void begin_values(float (&o)[128], const std::uint32_t (&weights)[16],
                                    std::uint64_t values) {
  wgmma_pin(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma_64x256_columns(o, weights + 4 * step, values + step * kValueStep, true);
  wgmma_commit();
}
__device__ inline void begin_values(float (&o)[128], std::uint64_t weights, std::uint64_t values) {
  wgmma_pin(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma_64x256_columns(o, weights + 2 * step, values + step * kValueStep, true);
  wgmma_commit();
}
__device__ inline void finish_values(float (&o)[128]) {
  wgmma_wait<0>();
  wgmma_pin(o);
}

__device__ inline void release(std::uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

// Warpgroup 0 hands numbers to warpgroup 1 through shared memory: wait_read, writes, publish; there
// wait_published, reads, have_read, and one have_read before all. wait_read also brings the warps
// of warpgroup 0 together.
__device__ inline void wait_read() { barrier_sync(kRead, 2 * kWarpgroup); }
__device__ inline void publish() { barrier_arrive(kPublished, 2 * kWarpgroup); }
__device__ inline void wait_published() { barrier_sync(kPublished, 2 * kWarpgroup); }
__device__ inline void have_read() { barrier_arrive(kRead, 2 * kWarpgroup); }

// Says to both warpgroups that tile n holds a value that is not finite. Written before wait_read
// and read after it. Slots go round: the one cleared here was last read two tiles ago and is
// written again two tiles on, with a barrier between.
__device__ inline void note_poison(Shared& shared, int n, bool found) {
  if (found) shared.poisoned[n % kPoisonSlots] = 1;
}
__device__ inline bool read_poison(Shared& shared, int n) {
  if (threadIdx.x == 0) shared.poisoned[(n + 2) % kPoisonSlots] = 0;
  return shared.poisoned[n % kPoisonSlots] != 0;
}

__device__ inline void store_factors(Shared& shared, const float (&factor)[2], int thread) {
  if (thread % 4 != 0) return;
  shared.rescale[row_of(thread, 0)] = factor[0];
  shared.rescale[row_of(thread, 1)] = factor[1];
}

// Logits to weights in registers, and what they do to earlier sums.
__device__ inline void weigh_tile(float (&s)[32], std::uint32_t (&weights)[16], float (&rescale)[2],
                                  RowState& state, const std::uint32_t (&masks)[4][2],
                                  const RowQueries& rows, float scale, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state.any[i] |= mask_row(s, i, masks[rows.query[i]], thread);
    rescale[i] = weigh_row(s, i, scale, state);
  }
  pack_weights(s, weights);
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void score_and_take_left(const SparseMlaWgmmaParams& p, Shared& shared) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int thread = threadIdx.x % kWarpgroup;
  const float scale = p.softmax_scale * kLog2E;
  Walk<kKind, kSplit> walk(p);
  for (int n = 0, works = 0; walk.next_work();) {
    const Work& w = walk.work;
    const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
    RowState state;
    float o[128] = {};
    if (w.tile_begin < w.tile_end) mbarrier_wait(&shared.q_full, works++ & 1);
    for (int tile = w.tile_begin; tile < w.tile_end; ++tile, ++n) {
      const int stage = n % kStages;
      float s[32], rescale[2];
      std::uint32_t weights[16];
      multiply_scores(s, shared, stage, n / kStages & 1);
      if (tile + 1 == w.tile_end) release(&shared.q_empty);
      if (kUnion) note_poison(shared, n, holds_non_finite(s));
      weigh_tile(s, weights, rescale, state, shared.masks[stage], rows, scale, thread);
      wait_read();
      rescale_values(o, rescale);
      if (kUnion && read_poison(shared, n)) {
        take_out_non_finite(o, shared.kv[stage], shared.masks[stage], rows, kLeft, thread);
      }
      begin_values(o, weights, columns_operand(shared_address(shared.kv[stage]), kBlockBytes));
      store_weights(shared.weights, weights, thread);
      store_factors(shared, rescale, thread);
      fence_for_wgmma();
      publish();
      finish_values(o);
      release(&shared.empty[stage]);
    }
    const float factor[2] = {finish_row(state, 0), finish_row(state, 1)};
    if constexpr (kSplit == EntrySplit::kCluster) {
      store_part(o, shared, 0, thread);
      store_rows(state, shared, thread);
    } else {
      wait_read();
      store_factors(shared, factor, thread);
      publish();
      write_lse(p, w, state, thread);
      write_half(p, w, o, factor, 0, thread);
    }
  }
  wait_read();  // whoever arrives is awaited
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void take_right(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup;
  have_read();
  Walk<kKind, kSplit> walk(p);
  for (int n = 0; walk.next_work();) {
    const Work& w = walk.work;
    const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
    float o[128] = {};
    for (int tile = w.tile_begin; tile < w.tile_end; ++tile, ++n) {
      const int stage = n % kStages;
      unsigned char* values = shared.kv[stage] + kFirstBlocks * kBlockBytes;
      mbarrier_wait(&shared.full[stage][1], n / kStages & 1);
      fence_for_wgmma();
      wait_published();
      const float rescale[2] = {shared.rescale[row_of(thread, 0)],
                                shared.rescale[row_of(thread, 1)]};
      rescale_values(o, rescale);
      if (kKind == EntryKind::kUnion && shared.poisoned[n % kPoisonSlots]) {
        take_out_non_finite(o, values, shared.masks[stage], rows, kRight, thread);
      }
      begin_values(o, rows_operand(shared_address(shared.weights)),
                   columns_operand(shared_address(values), kBlockBytes));
      finish_values(o);
      have_read();
      release(&shared.empty[stage]);
    }
    if constexpr (kSplit == EntrySplit::kCluster) {
      store_part(o, shared, 1, thread);
    } else {
      wait_published();
      const float factor[2] = {shared.rescale[row_of(thread, 0)],
                               shared.rescale[row_of(thread, 1)]};
      have_read();
      write_half(p, w, o, factor, 1, thread);
    }
  }
}

template <LatentFormat kFormat>
__device__ inline void prepare(Shared& shared) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      for (int part = 0; part < kParts; ++part)
        mbarrier_init(&shared.full[stage][part], full_arrivals<kFormat>(part));
      mbarrier_init(&shared.empty[stage], 2 * kWarpgroup / 32);
    }
    mbarrier_init(&shared.q_full, kWarpgroup);
    mbarrier_init(&shared.q_empty, kWarpgroup / 32);
    mbarrier_init_fence();
  }
  if (threadIdx.x < kStages * 8) (&shared.masks[0][0][0])[threadIdx.x] = 0;
  if (threadIdx.x < kPoisonSlots) shared.poisoned[threadIdx.x] = 0;
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
  prepare<kFormat>(shared);
  // A launch has 3 x 168 registers for three threads: 208 + 168 + 128.
  switch (threadIdx.x / kWarpgroup) {
    case 0:
      take_registers<208>();
      score_and_take_left<kKind, kSplit>(p, shared);
      break;
    case 1:
      take_right<kKind, kSplit>(p, shared);
      break;
    default:
      give_registers<128>();
      if constexpr (kFormat == LatentFormat::kBFloat16) {
        gather_bf16<kKind, kSplit>(p, shared);
      } else {
        gather_e4m3<kKind, kSplit>(p, shared);
      }
  }
  if constexpr (kSplit == EntrySplit::kCluster) {
    combine_cluster(p, find_work<kKind, kSplit>(p, blockIdx.x / kClusterCtas), shared);
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
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "sparse_mla");
  std::int64_t ctas = sparse_mla_wgmma_ctas(p);
  if (kSplit == EntrySplit::kWhole) ctas = std::min<std::int64_t>(ctas, multiprocessors());
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kSplit == EntrySplit::kCluster ? kClusterCtas : 1u, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
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
