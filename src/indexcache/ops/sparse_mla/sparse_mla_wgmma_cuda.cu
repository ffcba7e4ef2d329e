// sparse_mla on Hopper: design and measurements in docs/kernels/sparse_mla.md.
//
// A CTA owns 64 rows, (query, head) pairs of one group, and walks over the group's entries in pairs
// of tiles of 64 keys. Three warpgroups, for e4m3 four:
//   0  logits, softmax and weights of tile 0; out[:, :256] += weights kv of both tiles
//   1  the same of tile 1; out[:, 256:]
//   2  gathers the latents of coming tiles
//   3  converts them from e4m3
// Both take the tiles in their order. For out, each needs the other's weights:
//   left weights    tile 0's, with the origin that they are against; 0 arrives, 1 waits
//   right weights   tile 1's, the other way round
// While 1 makes its weights, the products with tile 0's run. A CTA takes one piece of work after the
// other, so that the gather of the next overlaps the end of the last; a cluster takes one.
#include <algorithm>
#include <atomic>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/register_share.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_gather.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_lengths.cuh"
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

// A tile's logits, each part's once it has arrived; begun only.
__device__ inline void begin_logits(float (&s)[32], Shared& shared, int tile, int parity) {
  const std::uint64_t q = rows_operand(kQueriesAt),
                      keys = rows_operand(kTilesAt + tile * kTileBytes);
  mbarrier_wait(&shared.full[tile][kLeftPart], parity);
  fence_for_wgmma();
  multiply_blocks<0, kLeftBlocks>(s, q, keys, false);
  mbarrier_wait(&shared.full[tile][kRightPart], parity);
  fence_for_wgmma();
  multiply_blocks<kLeftBlocks, kBlocks>(s, q, keys, true);
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
                                    std::uint32_t values) {
  const std::uint64_t operand = columns_operand(values, kBlockBytes);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    multiply_values<kFormat>(o, weights + 4 * step, operand + step * kValueStep);
  wgmma_commit();
}
template <LatentFormat kFormat>
__device__ inline void begin_values(float (&o)[128], std::uint32_t weights, std::uint32_t values) {
  const std::uint64_t left = rows_operand(weights), right = columns_operand(values, kBlockBytes);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    multiply_values<kFormat>(o, left + 2 * step, right + step * kValueStep);
  wgmma_commit();
}

__device__ inline void arrive(BarrierId id) { barrier_arrive(id, 2 * kWarpgroup); }
__device__ inline void await(BarrierId id) { barrier_sync(id, 2 * kWarpgroup); }

// Logits to weights in registers, against an origin, which is left for the other warpgroup; and what
// that does to earlier sums.
__device__ inline void weigh_tile(float (&s)[32], std::uint32_t (&weights)[16], float (&rescale)[2],
                                  RowState& state, Shared& shared, float scale, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) rescale[i] = move_origin_for(s, i, scale, state);
  if (thread % 4 == 0) shared.origin[thread / 4] = make_float2(state.origin[0], state.origin[1]);
#pragma unroll
  for (int i = 0; i < 2; ++i) weigh_row(s, i, scale, rescale[i], state);
  pack_weights(s, weights);
}

// Takes over the origin that the other warpgroup has.
__device__ inline void take_origin(float (&rescale)[2], RowState& state, const Shared& shared,
                                   int thread) {
  const float2 origin = shared.origin[thread / 4];
  rescale[0] = move_origin(origin.x, 0, state);
  state.sum[0] *= rescale[0];
  rescale[1] = move_origin(origin.y, 1, state);
  state.sum[1] *= rescale[1];
  __syncwarp();  // one of them writes it next
}

// Sums of all tiles to out and lse, or, in a cluster, to where its CTAs read them.
template <EntrySplit kSplit>
__device__ inline void finish_work(const Launch& p, const Work& w, Shared& shared, RowState& state,
                                   const float (&o)[128], int half, int thread, int turn) {
  const bool any = w.tile_begin < w.tile_end;
  if (kSplit == EntrySplit::kWhole && w.suspended) [[unlikely]]
    return suspend(p, state, o, half, thread);
  if (any) join_rows(state, shared, half, thread, turn);
  if constexpr (kSplit == EntrySplit::kCluster) {
    store_part(o, shared, half, thread);
    if (half == 0) store_rows(state, shared, thread);
  } else {
    const float factor[2] = {state.any[0] ? 1 / state.sum[0] : 0,
                             state.any[1] ? 1 / state.sum[1] : 0};
    if (half == 1) write_lse(p, w, state, thread);  // the other has more to do
    if (any) {
      write_half(p, w, o, factor, shared, half, thread);
    } else {
      write_zeros(p, w, half, thread);
    }
  }
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__device__ inline void attend_left(const Launch& p, Shared& shared) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int thread = threadIdx.x % kWarpgroup;
  const float scale = p.softmax_scale * kLog2E;
  Walk<kKind, kSplit> walk(p, shared);
  for (int n = 0, works = 0; walk.next_work();) {
    const Work& w = walk.work;
    const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
    RowState state;
    float o[128] = {};
    if (kSplit == EntrySplit::kWhole && w.resumed) [[unlikely]]
      resume(p, state, o, 0, thread);
    if (w.tile_begin < w.tile_end) mbarrier_wait(&shared.q_full, works++ & 1);
    for (int tile = w.tile_begin; tile < w.tile_end; tile += 2, ++n) {
      float s[32], rescale[2];
      std::uint32_t weights[16];
      begin_logits(s, shared, 0, n & 1);
      const std::uint32_t selected = selected_columns(shared.masks[0], rows, state, thread);
      wgmma_wait<0>();
      wgmma_pin(s);
      if (tile + 2 >= w.tile_end) release(&shared.q_empty);
      const bool poisoned = kUnion && seek_poison(s, shared, 0, thread);
      mask_logits(s, selected);
      weigh_tile(s, weights, rescale, state, shared, scale, thread);
      barrier_sync(kLeft, kWarpgroup);  // all logits are done: the weights take their RoPE block
      store_weights(left_weights(shared), weights, thread);
      fence_for_wgmma();
      arrive(kLeftWeights);
      rescale_values(o, rescale);
      if (poisoned) [[unlikely]]
        take_out_non_finite(o, shared.kv[0], shared.masks[0], rows, kLeft, thread);
      wgmma_pin(o);
      wgmma_fence();
      begin_values<kFormat>(o, weights, values_at(0, kLeftPart));
      wgmma_wait<0>();
      wgmma_pin(o);
      release(&shared.empty[0][kLeftPart]);

      if (tile + 1 < w.tile_end) {
        await(kRightWeights);
        take_origin(rescale, state, shared, thread);
        rescale_values(o, rescale);
        if (kUnion && shared.poisoned[1]) [[unlikely]]
          take_out_non_finite(o, shared.kv[1], shared.masks[1], rows, kLeft, thread);
        wgmma_pin(o);
        wgmma_fence();
        begin_values<kFormat>(o, kRightWeightsAt, values_at(1, kLeftPart));
        wgmma_wait<0>();
        wgmma_pin(o);
      } else {
        // Tile 1's room is not given back twice before the gather has seen it, and no phase passes unseen.
        mbarrier_wait(&shared.full[1][kLeftPart], n & 1);
        mbarrier_wait(&shared.full[1][kRightPart], n & 1);
      }
      release(&shared.empty[1][kLeftPart]);
    }
    finish_work<kSplit>(p, w, shared, state, o, 0, thread, works & 1);
  }
}

__device__ inline unsigned char* right_values(Shared& shared, int tile) {
  return values_of(shared, {tile, kRightPart});
}

// The right values of tile 0, once its weights are there; begun only.
template <bool kUnion, LatentFormat kFormat>
__device__ inline void begin_left_tile(float (&o)[128], RowState& state, Shared& shared,
                                       const RowQueries& rows, int thread) {
  float rescale[2];
  await(kLeftWeights);
  take_origin(rescale, state, shared, thread);
  rescale_values(o, rescale);
  if (kUnion && shared.poisoned[0]) [[unlikely]]
    take_out_non_finite(o, right_values(shared, 0), shared.masks[0], rows, kRight, thread);
  wgmma_pin(o);
  wgmma_fence();
  begin_values<kFormat>(o, kLeftWeightsAt, values_at(0, kRightPart));
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__device__ inline void attend_right(const Launch& p, Shared& shared) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int thread = threadIdx.x % kWarpgroup;
  const float scale = p.softmax_scale * kLog2E;
  if (kUnion && kSplit == EntrySplit::kWhole && p.by_length.used) deal_by_length(p, shared, thread);
  Walk<kKind, kSplit> walk(p, shared);
  for (int n = 0, works = 0; walk.next_work();) {
    const Work& w = walk.work;
    const RowQueries rows = row_queries(w, static_cast<int>(p.num_heads), thread);
    RowState state;
    float o[128] = {};
    if (kSplit == EntrySplit::kWhole && w.resumed) [[unlikely]]
      resume(p, state, o, 1, thread);
    if (w.tile_begin < w.tile_end) mbarrier_wait(&shared.q_full, works++ & 1);
    int tile = w.tile_begin;
    for (; tile + 1 < w.tile_end; tile += 2, ++n) {
      float s[32], rescale[2];
      std::uint32_t weights[16];
      begin_logits(s, shared, 1, n & 1);
      const std::uint32_t selected = selected_columns(shared.masks[1], rows, state, thread);
      wgmma_wait<0>();
      wgmma_pin(s);
      if (tile + 2 >= w.tile_end) release(&shared.q_empty);
      const bool poisoned = kUnion && seek_poison(s, shared, 1, thread);
      mask_logits(s, selected);
      begin_left_tile<kUnion, kFormat>(o, state, shared, rows, thread);
      weigh_tile(s, weights, rescale, state, shared, scale, thread);
      store_weights(shared.weights, weights, thread);
      fence_for_wgmma();
      arrive(kRightWeights);
      wgmma_wait<0>();
      wgmma_pin(o);
      release(&shared.empty[0][kRightPart]);
      rescale_values(o, rescale);
      if (poisoned) [[unlikely]]
        take_out_non_finite(o, right_values(shared, 1), shared.masks[1], rows, kRight, thread);
      wgmma_pin(o);
      wgmma_fence();
      begin_values<kFormat>(o, weights, values_at(1, kRightPart));
      wgmma_wait<0>();
      wgmma_pin(o);
      release(&shared.empty[1][kRightPart]);
    }
    if (tile < w.tile_end) {  // without a tile 1
      mbarrier_wait(&shared.full[1][kRightPart], n++ & 1);
      release(&shared.q_empty);
      begin_left_tile<kUnion, kFormat>(o, state, shared, rows, thread);
      wgmma_wait<0>();
      wgmma_pin(o);
      release(&shared.empty[0][kRightPart]);
      release(&shared.empty[1][kRightPart]);
    }
    finish_work<kSplit>(p, w, shared, state, o, 1, thread, works & 1);
  }
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__device__ inline void prepare(const Launch& p, Shared& shared) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPairParts; ++i) {
      const TilePart t = part_in_order(i);
      const bool converted = kFormat == LatentFormat::kE4M3;
      mbarrier_init(&shared.full[t.tile][t.part], converted ? kWarpgroup : copy_arrivals(t.part));
      mbarrier_init(&shared.raw[t.tile][t.part], copy_arrivals(t.part));
      mbarrier_init(&shared.empty[t.tile][t.part], kWarpgroup / 32);
    }
    mbarrier_init(&shared.q_full, 1);
    mbarrier_init(&shared.dealt_known, kWarpgroup);
    mbarrier_init(&shared.q_empty, 2 * kWarpgroup / 32);
    mbarrier_init_fence();
  }
  if (threadIdx.x == kWarpgroup) find_course<kKind, kSplit>(p, shared.course);
  if (threadIdx.x < 2 * 4 * 2) (&shared.masks[0][0][0])[threadIdx.x] = 0;
  __syncthreads();
}

// Three threads of a launch have 3 x 168 registers, 208 + 208 + 88 of them; four 4 x 128.
constexpr int kAttendRegisters = 208;
template <LatentFormat kFormat>
constexpr int kGatherRegisters = kFormat == LatentFormat::kE4M3 ? 56 : 88;
constexpr int kConvertRegisters = 40;

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__global__ void __launch_bounds__(kThreads<kFormat>, 1)
    sparse_mla_kernel(const __grid_constant__ Launch p, const __grid_constant__ CUtensorMap q) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  constexpr std::uint32_t kOfCta = 0xFFFFFF;  // above it is the rank in a cluster
  if ((shared_address(memory) & kOfCta) != kSharedBase) __trap();
  if (threadIdx.x == 2 * kWarpgroup) fetch_map(q);
  prepare<kKind, kFormat, kSplit>(p, shared);
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
      gather<kKind, kFormat, kSplit>(p, q, shared);
      break;
    default:
      if constexpr (kFormat == LatentFormat::kE4M3) {
        give_registers<kConvertRegisters>();
        convert<kKind, kSplit>(p, shared);
      }
  }
  if constexpr (kSplit == EntrySplit::kCluster) {
    Walk<kKind, kSplit> walk(p, shared);
    walk.next_work();
    combine_cluster<kThreads<kFormat> / kWarpgroup>(p, walk.work, shared);
  }
}

int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "sparse_mla");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "sparse_mla");
  return count;
}

// Room for entries of a group from which on its last round is cut. With room for 768, 12 tiles, cuts cost
// 5 % of the time; with 6144 they save 7 %.
constexpr std::int64_t kLeastCutEntries = 2048;

Rounds rounds_of_launch(const SparseMlaWgmmaParams& p, bool may_cut) {
  const std::int64_t pieces = sparse_mla_wgmma_ctas(p);
  // Of short pieces a round costs less than handing sums on; and cuts are computed in 32 bits.
  const bool fit = p.entry_stride >= kLeastCutEntries && p.entry_stride < std::int64_t{1} << 26;
  return rounds_of(pieces, std::min<std::int64_t>(pieces, multiprocessors()), may_cut && fit);
}

// What no memory holds by chance, and no launch before has left.
std::uint64_t next_mark() {
  static std::atomic<std::uint64_t> launches = 0;
  return ++launches * 0x9E3779B97F4A7C15 ^ 0xD1B54A32D192ED03;
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
void launch(const SparseMlaWgmmaParams& p, CUstream_st* stream) {
  const auto kernel = sparse_mla_kernel<kKind, kFormat, kSplit>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared))),
             "sparse_mla");
  Launch all = {p, {1, 0, 0}};
  std::int64_t ctas = sparse_mla_wgmma_ctas(p);
  if (kSplit == EntrySplit::kWhole) {
    all.rounds = rounds_of_launch(p, p.workspace != nullptr);
    const std::int64_t pieces = ctas;
    ctas = std::min<std::int64_t>(ctas, multiprocessors());
    // With counts to tell lengths from, and groups of one piece.
    if (kKind == EntryKind::kUnion && p.counts && pieces == p.num_groups) {
      const std::int64_t most_tiles = (p.entry_stride + kTileKeys - 1) / kTileKeys;
      all.by_length = length_dealing(all.rounds, pieces, ctas, most_tiles);
    }
    all.mark = next_mark();
  }
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
  const std::uint64_t rows = p.num_queries * p.num_heads;
  CUtensorMap q;
  check_cuda(describe_tensor({.address = p.q,
                              .columns = kQueryBytes,
                              .rows = rows,
                              .planes = 1,
                              .row_stride = kQueryBytes,
                              .plane_stride = rows * kQueryBytes,
                              .box_columns = 128,
                              .box_rows = kTileRows},
                             TensorElement::kByte, true, q),
             "sparse_mla");
  check_cuda(cudaLaunchKernelEx(&config, kernel, all, q), "sparse_mla");
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

std::int64_t sparse_mla_wgmma_workspace(const SparseMlaWgmmaParams& p) {
  if (p.split != EntrySplit::kWhole || p.num_groups == 0) return 0;
  return device::suspended_halves(device::rounds_of_launch(p, true)) *
         (device::kLeftBytes + std::int64_t{sizeof(std::uint64_t)});
}

void sparse_mla_wgmma_cuda(const SparseMlaWgmmaParams& p, CUstream_st* stream) {
  if (p.num_groups == 0 || p.num_queries == 0) return;
  p.kind == EntryKind::kUnion ? device::launch<EntryKind::kUnion>(p, stream)
                              : device::launch<EntryKind::kIndices>(p, stream);
}

}  // namespace indexcache
