// From accumulators to out and lse: by one CTA, or by a cluster whose CTAs each hold a part of the sum.
#pragma once

#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_softmax.cuh"

namespace indexcache::device {

constexpr float kLn2 = 0.693147180559945f;

// Sums over the four threads that share a row, and leaves the rows' numbers in shared memory.
__device__ inline void publish_rows(RowState& state, Shared& shared, int thread) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = state.sum[i];
    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
    if (thread % 4 == 0) {
      const int row = row_of(thread, i);
      shared.row_max[row] = state.max[i];
      shared.row_sum[row] = sum;
      shared.row_any[row] = state.any[i];
      shared.rescale[row] = state.any[i] ? 1 / sum : 0;
    }
  }
}

// One warpgroup's 256 columns of out, through the blocks where q stood, so that whole rows go out.
__device__ inline void write_half(const SparseMlaWgmmaParams& p, const Work& w,
                                  const float (&o)[128], Shared& shared, int half, int thread) {
  unsigned char* blocks = shared.q + half * 4 * kBlockBytes;
  const float factor[2] = {shared.rescale[row_of(thread, 0)], shared.rescale[row_of(thread, 1)]};
#pragma unroll
  for (int j = 0; j < 32; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned char* to = blocks + j / 8 * kBlockBytes + swizzled_offset(row_of(thread, i), j % 8) +
                          4 * (thread % 4);
      *reinterpret_cast<std::uint32_t*>(to) =
          pack_bf16(o[4 * j + 2 * i] * factor[i], o[4 * j + 2 * i + 1] * factor[i]);
    }
  }
  barrier_sync(half == 0 ? kLeft : kRight, kWarpgroup);
  auto* out = static_cast<unsigned char*>(p.out) + w.first_row * 1024 + half * 512;
#pragma unroll 4
  for (int at = thread; at < kTileRows * 32; at += kWarpgroup) {
    const int row = at / 32, chunk = at % 32;
    if (row >= w.rows) break;
    *reinterpret_cast<uint4*>(out + row * 1024 + chunk * 16) = *reinterpret_cast<const uint4*>(
        blocks + chunk / 8 * kBlockBytes + swizzled_offset(row, chunk % 8));
  }
}

__device__ inline void write_lse(const SparseMlaWgmmaParams& p, const Work& w, const Shared& shared,
                                 int thread) {
  if (thread < w.rows)
    p.lse[w.first_row + thread] = shared.row_max[thread] * kLn2 + logf(shared.row_sum[thread]);
}

// fp32 rows of a part, padded so that the accumulators' layout reaches all banks.
constexpr int kPartStride = 520;
static_assert(kTileRows * kPartStride * 4 <= kStages * kTileBytes);

__device__ inline void store_part(const float (&o)[128], Shared& shared, int half, int thread) {
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

// One row of out from the parts of all CTAs, in the order of their ranks; four columns a thread.
__device__ inline void combine_row(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared,
                                   int row, int thread) {
  float maxes[kClusterCtas], max = -INFINITY;
  bool any = false;
#pragma unroll
  for (int rank = 0; rank < kClusterCtas; ++rank) {
    maxes[rank] = read_peer(peer_address(shared_address(&shared.row_max[row]), rank));
    any |= __float_as_int(read_peer(peer_address(shared_address(&shared.row_any[row]), rank))) != 0;
    max = fmaxf(max, maxes[rank]);
  }
  const float origin = max == -INFINITY ? 0 : max;
  const std::uint32_t part =
      shared_address(reinterpret_cast<float*>(shared.kv) + row * kPartStride + 4 * thread);
  float sum = 0, v[4] = {};
#pragma unroll
  for (int rank = 0; rank < kClusterCtas; ++rank) {
    const float factor = exp2_fast(maxes[rank] - origin);
    sum = fmaf(factor, read_peer(peer_address(shared_address(&shared.row_sum[row]), rank)), sum);
    const float4 part_values = read_peer_4(peer_address(part, rank));
    v[0] = fmaf(factor, part_values.x, v[0]);
    v[1] = fmaf(factor, part_values.y, v[1]);
    v[2] = fmaf(factor, part_values.z, v[2]);
    v[3] = fmaf(factor, part_values.w, v[3]);
  }
  const float inverse = any ? 1 / sum : 0;
  auto* out = static_cast<unsigned char*>(p.out) + (w.first_row + row) * 1024 + 8 * thread;
  *reinterpret_cast<uint2*>(out) = make_uint2(pack_bf16(v[0] * inverse, v[1] * inverse),
                                              pack_bf16(v[2] * inverse, v[3] * inverse));
  if (thread == 0) p.lse[w.first_row + row] = max * kLn2 + logf(sum);
}

// By all threads of all CTAs of the cluster.
__device__ inline void combine_cluster(const SparseMlaWgmmaParams& p, const Work& w,
                                       Shared& shared) {
  cluster_sync();
  const int warpgroup = threadIdx.x / kWarpgroup;
  for (int row = cluster_rank() + kClusterCtas * warpgroup; row < w.rows; row += 3 * kClusterCtas) {
    combine_row(p, w, shared, row, threadIdx.x % kWarpgroup);
  }
  cluster_sync();  // no CTA leaves while others read its part
}

}  // namespace indexcache::device
