// What a CTA of the Hopper kernel works on, and how its shared memory is laid out.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "indexcache/kernels/cluster.cuh"
#include "indexcache/kernels/mbarrier.cuh"
#include "indexcache/kernels/union_entry.h"
#include "indexcache/kernels/wgmma_bf16.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

namespace indexcache::device {

constexpr int kTileRows = 64;  // (query, head) pairs of a CTA
constexpr int kTileKeys = 64;
constexpr int kBlockBytes = kTileKeys * 128;  // 64 rows of one swizzled block of 64 columns
constexpr int kLatentBlocks = 8, kBlocks = 9;
constexpr int kTileBytes = kBlocks * kBlockBytes;
constexpr int kStages = 2;
constexpr int kWarpgroup = 128;
constexpr int kThreads = 3 * kWarpgroup;  // scores and left values, right values, gather

struct Shared {
  unsigned char q[kTileBytes];            // at the end: out on its way to memory
  unsigned char kv[kStages][kTileBytes];  // at the end, in a cluster: this CTA's fp32 part of out
  unsigned char weights[kBlockBytes];     // softmax weights of one tile, bf16
  float rescale[kTileRows];  // what the tile's maximum does to earlier sums; at the end 1 / sum
  float row_max[kTileRows], row_sum[kTileRows];
  int row_any[kTileRows];  // whether the row has any key
  std::uint32_t masks[kStages][4]
                     [2];  // bit c of query j's 64 bits: it selected key c of the tile; [3]: none
  int poisoned;            // the tile holds a value that is not finite
  std::uint64_t full[kStages], empty[kStages];
};
constexpr int kSharedBytes = sizeof(Shared) + 1024;  // blocks start at multiples of 1024

// Barriers of the CTA by number (0 is __syncthreads).
enum BarrierId { kWeightsReady = 1, kWeightsFree, kLeft, kRight, kConsumersDone };

struct Work {
  std::int64_t first_row;  // in q's M * h rows
  int rows;                // of the tile's 64, or less than 1: nothing to do
  int row_in_group;        // of the tile's first row
  int request;
  const std::int32_t* entries;
  int count;
  int tile_begin, tile_end;  // of the entries' tiles of 64
};

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline Work find_work(const SparseMlaWgmmaParams& p) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int heads = static_cast<int>(p.num_heads);
  const int row_tiles = (heads * (kUnion ? kGroupQueries : 1) + kTileRows - 1) / kTileRows;
  const int cta = kSplit == EntrySplit::kCluster ? blockIdx.x / kClusterCtas : blockIdx.x;
  const int group = cta / row_tiles;
  Work w;
  w.row_in_group = cta % row_tiles * kTileRows;
  const std::int64_t first = kUnion ? p.group_begin[group] : group;
  const std::int64_t end = kUnion ? p.group_begin[group + 1] : group + 1;
  w.first_row = first * heads + w.row_in_group;
  w.rows = min(kTileRows, static_cast<int>(end - first) * heads - w.row_in_group);
  w.request = p.request ? p.request[group] : 0;
  w.entries = p.entries + group * p.entry_stride;
  w.count = static_cast<int>(p.entry_stride);
  if (p.counts) w.count = max(0, min(w.count, p.counts[group]));
  const int tiles = (w.count + kTileKeys - 1) / kTileKeys;
  w.tile_begin = 0;
  w.tile_end = tiles;
  if constexpr (kSplit == EntrySplit::kCluster) {
    const int rank = cluster_rank();
    w.tile_begin = tiles * rank / kClusterCtas;
    w.tile_end = tiles * (rank + 1) / kClusterCtas;
  }
  return w;
}

}  // namespace indexcache::device
