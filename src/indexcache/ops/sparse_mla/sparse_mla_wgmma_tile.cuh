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

// A tile arrives in two parts, so that the logits can begin with the first. The left values are the
// first part, the right ones in the second.
constexpr int kParts = 2;
constexpr int kPoisonSlots = 4;
constexpr int kFirstBlocks = 4;

// What a row's part of a sum is against, in a cluster.
struct PartRows {
  float max[kTileRows], sum[kTileRows];
  int any[kTileRows];  // whether the row has any key
};

struct Shared {
  unsigned char q[kTileBytes];
  unsigned char kv[kStages][kTileBytes];  // at the end, in a cluster: this CTA's fp32 part of out
  union {
    unsigned char weights[kBlockBytes];  // softmax weights of one tile, bf16
    PartRows part;                       // at the end, in a cluster
  };
  float rescale[kTileRows];  // what the tile's maximum does to earlier sums; at the end 1 / sum
  // Bit c of query j's 64 bits: it selected key c of the tile. [3] is of no query.
  std::uint32_t masks[kStages][4][2];
  // Of the latents of the tile that is being gathered and of the next.
  std::int64_t offsets[2][kTileKeys];
  int poisoned[kPoisonSlots];  // whether a tile holds a value that is not finite
  std::uint64_t full[kStages][kParts], empty[kStages];
  std::uint64_t q_full, q_empty;
};
constexpr int kSharedBytes = sizeof(Shared) + 1024;  // blocks start at multiples of 1024
static_assert(kSharedBytes <= 227 * 1024);           // what sm_90 gives a CTA

// Barriers of the CTA by number (0 is __syncthreads).
enum BarrierId { kPublished = 1, kRead, kLeft, kRight, kConsumersDone, kGather };

struct Work {
  std::int64_t first_row;  // in q's M * h rows
  int rows;                // of the tile's 64, or less than 1: nothing to do
  int row_in_group;        // of the tile's first row
  int request;
  const std::int32_t* entries;
  int count;
  int tile_begin, tile_end;  // of the entries' tiles of 64
};

// How many pieces of work a launch has; a CTA, or a cluster, takes every gridDim-th.
template <EntryKind kKind>
__device__ inline int row_tiles(const SparseMlaWgmmaParams& p) {
  const int rows = static_cast<int>(p.num_heads) * (kKind == EntryKind::kUnion ? kGroupQueries : 1);
  return (rows + kTileRows - 1) / kTileRows;
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline Work find_work(const SparseMlaWgmmaParams& p, int item) {
  constexpr bool kUnion = kKind == EntryKind::kUnion;
  const int heads = static_cast<int>(p.num_heads);
  const int group = item / row_tiles<kKind>(p);
  Work w;
  w.row_in_group = item % row_tiles<kKind>(p) * kTileRows;
  const std::int64_t first = kUnion ? p.group_begin[group] : group;
  const std::int64_t end = kUnion ? p.group_begin[group + 1] : group + 1;
  w.first_row = first * heads + w.row_in_group;
  w.rows = min(kTileRows, static_cast<int>(end - first) * heads - w.row_in_group);
  w.request = p.request ? p.request[group] : 0;
  w.entries = p.entries + group * p.entry_stride;
  w.count = static_cast<int>(p.entry_stride);
  if (p.counts) w.count = max(0, min(w.count, p.counts[group]));
  const int tiles = w.rows > 0 ? (w.count + kTileKeys - 1) / kTileKeys : 0;
  const int rank = kSplit == EntrySplit::kCluster ? cluster_rank() : 0;
  constexpr int kShares = kSplit == EntrySplit::kCluster ? kClusterCtas : 1;
  w.tile_begin = tiles * rank / kShares;
  w.tile_end = tiles * (rank + 1) / kShares;
  return w;
}

// The tiles of all work of this CTA, one after the other.
template <EntryKind kKind, EntrySplit kSplit>
struct Walk {
  __device__ explicit Walk(const SparseMlaWgmmaParams& params)
      : p(params),
        step(kSplit == EntrySplit::kCluster ? gridDim.x / kClusterCtas : gridDim.x),
        item((kSplit == EntrySplit::kCluster ? blockIdx.x / kClusterCtas : blockIdx.x) - step),
        items(static_cast<int>(p.num_groups) * row_tiles<kKind>(p)) {}

  // The next work; false where there is none.
  __device__ bool next_work() {
    item += step;
    if (item >= items) return false;
    work = find_work<kKind, kSplit>(p, item);
    return true;
  }
  // The next tile, of this work or of the next that has any.
  __device__ bool next_tile() {
    ++tile;
    while (tile >= work.tile_end) {
      if (!next_work()) return false;
      tile = work.tile_begin;
    }
    return true;
  }

  const SparseMlaWgmmaParams& p;
  int step, item, items;
  Work work = {};
  int tile = 0;
};

}  // namespace indexcache::device
