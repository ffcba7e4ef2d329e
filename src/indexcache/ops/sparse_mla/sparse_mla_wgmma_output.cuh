// From accumulators to out and lse: by one CTA, or by a cluster whose CTAs each hold a part of the
// sum.
#pragma once

#include "indexcache/kernels/release_acquire.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_softmax.cuh"

namespace indexcache::device {

constexpr float kLn2 = 0.693147180559945f;

// The row's sum over the four threads that share it and both warpgroups, `half` being this one. `turn`
// alternates: the other may not yet have read what was left here the last time.
__device__ inline void join_rows(RowState& state, Shared& shared, int half, int thread, int turn) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state.sum[i] += __shfl_xor_sync(0xFFFFFFFF, state.sum[i], 1);
    state.sum[i] += __shfl_xor_sync(0xFFFFFFFF, state.sum[i], 2);
    if (thread % 4 != 0) continue;
    shared.sum[turn][half][row_of(thread, i)] = state.sum[i];
    shared.any[turn][half][row_of(thread, i)] = state.any[i];
  }
  barrier_sync_apart(kBoth, 2 * kWarpgroup);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state.sum[i] += shared.sum[turn][1 - half][row_of(thread, i)];
    state.any[i] |= shared.any[turn][1 - half][row_of(thread, i)];
  }
}

__device__ inline void write_lse(const SparseMlaWgmmaParams& p, const Work& w,
                                 const RowState& state, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of(thread, i);
    if (thread % 4 == 0 && row < w.rows)
      p.lse[w.first_row + row] = state.origin[i] * kLn2 + logf(state.sum[i]);
  }
  __syncwarp();
}

// One warpgroup's 256 columns of out, by way of the room of tile 1's weights, which nobody needs until the
// other warpgroup has come here, too: 1024 bytes a warp, its 16 rows of 32 columns. So the tiles' room
// is the gather's in the meantime.
__device__ inline void write_half(const SparseMlaWgmmaParams& p, const Work& w,
                                  const float (&o)[128], const float (&factor)[2], Shared& shared,
                                  int half, int thread) {
  asm volatile("" : "+r"(thread));  // no address of here is worth a register in the loop over tiles
  const int lane = thread % 32, warp = thread / 32;
  const std::uint32_t staged = shared_address(shared.weights) + (4 * half + warp) * 1024;
  // Chunks of 16 bytes, so that eight rows of one, and all of four, reach all banks.
  const auto place = [](int row, int chunk) { return row * 64 + ((chunk ^ row / 2 % 4) << 4); };
  const std::uint32_t to = staged + place(lane % 16, lane / 16),
                      from = staged + place(lane / 4, lane % 4);
  auto* out = static_cast<unsigned char*>(p.out) + (w.first_row + 16 * warp + lane / 4) * 1024 +
              half * 512 + lane % 4 * 16;
  const bool writes[2] = {16 * warp + lane / 4 < w.rows, 16 * warp + lane / 4 + 8 < w.rows};
#pragma unroll
  for (int j = 0; j < 32; j += 4) {
#pragma unroll
    for (int m = 0; m < 4; m += 2) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (j + m + i / 2) + 2 * (i % 2);
        words[i] = pack_bf16(o[at] * factor[i % 2], o[at + 1] * factor[i % 2]);
      }
      store_matrices(to ^ m << 4, words);
    }
    __syncwarp();
    const uint4 values[2] = {load_16(from), load_16(from + 8 * 64)};
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (writes[i]) *reinterpret_cast<uint4*>(out + i * 8 * 1024 + j * 16) = values[i];
    }
    __syncwarp();
  }
}

// The same where there is no key.
__device__ inline void write_zeros(const SparseMlaWgmmaParams& p, const Work& w, int half,
                                   int thread) {
  auto* out =
      static_cast<unsigned char*>(p.out) + w.first_row * 1024 + half * 512 + thread % 32 * 16;
#pragma unroll 1
  for (int row = thread / 32; row < w.rows; row += kWarpgroup / 32)
    *reinterpret_cast<uint4*>(out + row * 1024) = make_uint4(0, 0, 0, 0);
}

// What a warpgroup of a CTA leaves in the workspace, 16 bytes of each thread beside another: out so far
// and what it is against. Behind all of them a word for each, which is the launch's mark while something
// is there to be taken.
constexpr int kLeftRows = 34;
constexpr std::int64_t kLeftBytes = kLeftRows * kWarpgroup * 16;
inline std::int64_t suspended_halves(const Rounds& r) {
  return r.cutters > r.rest ? 2 * std::int64_t{r.cutters} : 0;
}
__device__ inline std::uint64_t* left_mark(const Launch& p, int cta, int half) {
  auto* marks = static_cast<unsigned char*>(p.workspace) + 2 * p.rounds.cutters * kLeftBytes;
  return reinterpret_cast<std::uint64_t*>(marks) + 2 * cta + half;
}
__device__ inline float4* left_rows(const Launch& p, int cta, int half, int thread) {
  auto* rows = static_cast<unsigned char*>(p.workspace) + (2 * cta + half) * kLeftBytes;
  return reinterpret_cast<float4*>(rows) + thread;
}

// Leaves the sums of a work to the CTA that resumes it.
__device__ inline void suspend(const Launch& p, const RowState& state, const float (&o)[128],
                               int half, int thread) {
  asm volatile("" : "+r"(thread));  // as in write_half
  const int cta = static_cast<int>(blockIdx.x);
  float4* to = left_rows(p, cta, half, thread);
#pragma unroll
  for (int i = 0; i < 32; ++i)
    __stcg(to + i * kWarpgroup, make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]));
  __stcg(to + 32 * kWarpgroup,
         make_float4(state.origin[0], state.origin[1], state.sum[0], state.sum[1]));
  __stcg(to + 33 * kWarpgroup,
         make_float4(state.any[0] ? 1.0f : 0.0f, state.any[1] ? 1.0f : 0.0f, 0, 0));
  __threadfence();
  barrier_sync(half == 0 ? kLeft : kRight, kWarpgroup);
  if (thread == 0) store_release(left_mark(p, cta, half), p.mark);
}

__device__ inline void resume(const Launch& p, RowState& state, float (&o)[128], int half,
                              int thread) {
  asm volatile("" : "+r"(thread));
  const int cta = static_cast<int>(blockIdx.x) - 1;
  if (thread == 0) {
    std::uint64_t* mark = left_mark(p, cta, half);
    while (load_acquire(mark) != p.mark) {
    }
    *mark = 0;  // a graph's next launch has the same mark
  }
  __syncwarp();
  barrier_sync(half == 0 ? kLeft : kRight, kWarpgroup);
  const float4* from = left_rows(p, cta, half, thread);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float4 v = __ldcg(from + i * kWarpgroup);
    o[4 * i] = v.x, o[4 * i + 1] = v.y, o[4 * i + 2] = v.z, o[4 * i + 3] = v.w;
  }
  const float4 row = __ldcg(from + 32 * kWarpgroup), any = __ldcg(from + 33 * kWarpgroup);
  state.origin[0] = row.x, state.origin[1] = row.y, state.sum[0] = row.z, state.sum[1] = row.w;
  state.any[0] = any.x != 0, state.any[1] = any.y != 0;
}

// fp32 rows of a part, padded so that the accumulators' layout reaches all banks.
constexpr int kPartStride = 520;
static_assert(kTileRows * kPartStride * 4 <= 2 * kTileBytes);

__device__ inline void store_part(const float (&o)[128], Shared& shared, int half, int thread) {
  barrier_sync_apart(kBoth, 2 * kWarpgroup);  // nobody needs the tiles there any more
  auto* part = reinterpret_cast<float*>(shared.kv);
#pragma unroll
  for (int j = 0; j < 32; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float2*>(part + row_of(thread, i) * kPartStride + half * 256 + 8 * j +
                                 2 * (thread % 4)) =
          make_float2(o[4 * j + 2 * i], o[4 * j + 2 * i + 1]);
    }
  }
}

__device__ inline void store_rows(const RowState& state, Shared& shared, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of(thread, i);
    if (thread % 4 != 0) continue;
    shared.part.origin[row] = state.origin[i];
    shared.part.sum[row] = state.sum[i];
    shared.part.any[row] = state.any[i];
  }
}

// A CTA combines every kClusterCtas-th row, from its rank on; of these a warpgroup every
// kWarpgroups-th.
template <int kWarpgroups>
__device__ inline int combined_row(int n) {
  const int warpgroup = threadIdx.x / kWarpgroup;
  return cluster_rank() + kClusterCtas * (warpgroup + kWarpgroups * n);
}

// What the parts of the warpgroup's rows are to be multiplied with: lane kClusterCtas n + r has the
// factor of CTA r's part of row n. And the rows' lse.
template <int kWarpgroups>
__device__ inline float join_parts(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared) {
  constexpr unsigned kAll = 0xFFFFFFFF;
  static_assert((kClusterCtas & (kClusterCtas - 1)) == 0 && kWarpgroups * 32 >= kTileRows);
  const int lane = threadIdx.x % 32, rank = lane % kClusterCtas,
            row = combined_row<kWarpgroups>(lane / kClusterCtas);
  float own = -INFINITY, own_sum = 0;
  int any = 0;
  if (row < kTileRows) {
    own = read_peer(peer_address(shared_address(&shared.part.origin[row]), rank));
    own_sum = read_peer(peer_address(shared_address(&shared.part.sum[row]), rank));
    any = read_peer_byte(peer_address(shared_address(&shared.part.any[row]), rank));
  }
  float max = own;
#pragma unroll
  for (int distance = 1; distance < kClusterCtas; distance *= 2) {
    max = fmaxf(max, __shfl_xor_sync(kAll, max, distance));
    any |= __shfl_xor_sync(kAll, any, distance);
  }
  const float factor = exp2_fast(own - finite_origin(max));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kClusterCtas; ++i)
    sum += __shfl_sync(kAll, factor * own_sum, i, kClusterCtas);
  if (threadIdx.x % kWarpgroup < 32 && rank == 0 && row < w.rows)
    p.lse[w.first_row + row] = max * kLn2 + logf(sum);
  return any ? factor / sum : 0;
}

// Row n of out from the parts of all CTAs, in the order of their ranks; four columns a thread.
__device__ inline void combine_row(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared,
                                   float factors, int n, int row) {
  const int thread = threadIdx.x % kWarpgroup;
  const std::uint32_t part =
      shared_address(reinterpret_cast<float*>(shared.kv) + row * kPartStride + 4 * thread);
  float v[4] = {};
#pragma unroll
  for (int rank = 0; rank < kClusterCtas; ++rank) {
    const float factor = __shfl_sync(0xFFFFFFFF, factors, kClusterCtas * n + rank);
    const float4 values = read_peer_4(peer_address(part, rank));
    v[0] = fmaf(factor, values.x, v[0]);
    v[1] = fmaf(factor, values.y, v[1]);
    v[2] = fmaf(factor, values.z, v[2]);
    v[3] = fmaf(factor, values.w, v[3]);
  }
  auto* out = static_cast<unsigned char*>(p.out) + (w.first_row + row) * 1024 + 8 * thread;
  *reinterpret_cast<uint2*>(out) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

// By all threads of all CTAs of the cluster.
template <int kWarpgroups>
__device__ inline void combine_cluster(const SparseMlaWgmmaParams& p, const Work& w,
                                       Shared& shared) {
  cluster_sync();
  const float factors = join_parts<kWarpgroups>(p, w, shared);
  int row;
#pragma unroll 2
  for (int n = 0; (row = combined_row<kWarpgroups>(n)) < w.rows; ++n)
    combine_row(p, w, shared, factors, n, row);
  cluster_meet();  // no CTA leaves while others read its part
}

}  // namespace indexcache::device
