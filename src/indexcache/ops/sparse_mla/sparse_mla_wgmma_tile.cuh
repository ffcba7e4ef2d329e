// What a CTA of the Hopper kernel works on, and how its shared memory is laid out.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "indexcache/kernels/cluster.cuh"
#include "indexcache/kernels/mbarrier.cuh"
#include "indexcache/kernels/union_entry.h"
#include "indexcache/kernels/wgmma_bf16.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_lengths.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

namespace indexcache::device {

constexpr int kTileRows = 64;  // (query, head) pairs of a CTA
constexpr int kTileKeys = 64;
constexpr int kBlockBytes = kTileKeys * 128;  // 64 rows of one swizzled block of 64 columns
constexpr int kLatentBlocks = 8, kBlocks = 9;
constexpr int kTileBytes = kBlocks * kBlockBytes;
constexpr int kQueryBytes = kBlocks * 128;  // a row of q
constexpr int kWarpgroup = 128;
// Left values, right values, gather; e4m3: conversion.
template <LatentFormat kFormat>
constexpr int kThreads = (kFormat == LatentFormat::kE4M3 ? 4 : 3) * kWarpgroup;

// Tiles come in pairs. Each arrives, and is given back, in two parts: the left values, and the right
// ones with the RoPE block.
constexpr int kPairKeys = 2 * kTileKeys;
enum Part { kLeftPart, kRightPart, kParts };
constexpr int kLeftBlocks = 4, kPartBlocks = 4;  // of values

constexpr int kRowLanes = 8;                         // threads that share a row
constexpr int kRowsAtOnce = kWarpgroup / kRowLanes;  // 16
constexpr int kRowRounds = kTileKeys / kRowsAtOnce;  // 4

// The order in which the parts of a pair are needed, and so gathered.
struct TilePart {
  int tile;
  Part part;
};
constexpr int kPairParts = 4;
__device__ constexpr TilePart part_in_order(int i) {
  return {i / 2, i % 2 == 0 ? kLeftPart : kRightPart};
}

// A launch's arguments, and how its pieces of work go round.
struct Launch : SparseMlaWgmmaParams {
  Rounds rounds;
  LengthDealing by_length = {};
  std::uint64_t mark = 0;  // what tells a CTA that another has left its sums
};

// A piece of work: 64 rows of a group.
struct Piece {
  int group, row_tile;
};

// Pieces dealt out by length.
constexpr int kNoGroup = -1;
struct Dealt {
  int group[kMostDealtRounds];  // this CTA's, kNoGroup behind the last
  int place, warp_sums[4];      // while they are found
};

// The way of a CTA, or a cluster, through the pieces.
struct Course {
  Piece first, step;  // of its whole pieces
  Piece cut[2];       // those of its parts of the rest
  CtaRest rest;
  Dealt dealt;
};

// What a row's part of a sum is against, in a cluster.
struct PartRows {
  float origin[kTileRows], sum[kTileRows];
  bool any[kTileRows];  // whether the row has any key
};

struct alignas(1024) Shared {
  unsigned char q[kTileBytes];
  // A pair's tiles. The softmax weights of tile 0 take the place of its RoPE block once its logits
  // are done. At the end, in a cluster: this CTA's fp32 part of out.
  unsigned char kv[2][kTileBytes];
  union {
    unsigned char weights[kBlockBytes];  // of tile 1, bf16; at the end of a work, out on its way
    PartRows part;                       // at the end, in a cluster
  };
  float2 origin[kTileRows / 2];  // of rows r and r + 8, with the weights that are handed on
  // At the end of a work, by turns: what each warpgroup summed, and whether of any key.
  float sum[2][2][kTileRows];
  bool any[2][2][kTileRows];
  // Which keys of a tile the group's query j selected, by key_bit. [3] is of no query.
  std::uint32_t masks[2][4][2];
  int poisoned[2];  // whether a tile holds a value that is not finite
  std::uint64_t full[2][kParts], empty[2][kParts];
  std::uint64_t raw[2][kParts];  // e4m3: copied, not yet converted
  std::uint64_t q_full, q_empty;
  std::uint64_t dealt_known;
  Course course;
};
static_assert(sizeof(Shared) <= 227 * 1024);  // what sm_90 gives a CTA

// Where operands of wgmma stand in a CTA's shared memory, whose first KB sm_90 keeps to itself; the
// kernel looks whether that holds. Their descriptors are constants: the assembler kept an address that it does
// not know in a thread's register, and moved it for each product.
constexpr std::uint32_t kSharedBase = 1024;
constexpr std::uint32_t kQueriesAt = kSharedBase + offsetof(Shared, q),
                        kTilesAt = kSharedBase + offsetof(Shared, kv),
                        kLeftWeightsAt = kTilesAt + kLatentBlocks * kBlockBytes,
                        kRightWeightsAt = kSharedBase + offsetof(Shared, weights);
__device__ constexpr std::uint32_t values_at(int tile, Part part) {
  return kTilesAt + tile * kTileBytes + (part == kLeftPart ? 0 : kLeftBlocks) * kBlockBytes;
}

__device__ inline unsigned char* values_of(Shared& shared, TilePart t) {
  return shared.kv[t.tile] + (t.part == kLeftPart ? 0 : kLeftBlocks) * kBlockBytes;
}

__device__ inline unsigned char* left_weights(Shared& shared) {
  return shared.kv[0] + kLatentBlocks * kBlockBytes;
}

// A gathering warp w has the rows 16 r + 4 w + s of a tile, r and s from 0 to 3, and their bits in 16
// of the tile's 64 of a query.
__device__ inline bool selects(const std::uint32_t (&mask)[2], int key) {
  const int warp = key % 16 / 4;
  return mask[warp / 2] >> (warp % 2 * 16 + key / 16 * 4 + key % 4) & 1;
}

// Barriers of the CTA by number (0 is __syncthreads).
enum BarrierId { kLeftWeights = 1, kRightWeights, kLeft, kRight, kBoth };

struct Work {
  std::int64_t first_row;  // in q's M * h rows
  int rows;                // of the tile's 64, or less than 1: nothing to do
  int row_in_group;        // of the tile's first row
  int request;
  const std::int32_t* entries;
  int tile_begin, tile_end;  // of the entries' tiles of 64
  int entries_end;           // of those tiles
  bool resumed, suspended;   // whether it goes on with a CTA's sums, leaves its own
};

// How many pieces of work a group has.
template <EntryKind kKind>
__device__ inline int row_tiles(const SparseMlaWgmmaParams& p) {
  const int rows = static_cast<int>(p.num_heads) * (kKind == EntryKind::kUnion ? kGroupQueries : 1);
  return (rows + kTileRows - 1) / kTileRows;
}

// What has to be read of its group, none beyond the last.
struct GroupExtent {
  int begin, end;  // rows of q, in queries
  int count;       // of entries
};
template <EntryKind kKind>
__device__ inline GroupExtent read_extent(const SparseMlaWgmmaParams& p, int group) {
  if (group >= p.num_groups) return {};
  GroupExtent extent = {group, group + 1, static_cast<int>(p.entry_stride)};
  if (kKind == EntryKind::kUnion) {
    extent.begin = __ldg(p.group_begin + group);
    extent.end = __ldg(p.group_begin + group + 1);
  }
  if (p.counts) extent.count = __ldg(p.counts + group);
  return extent;
}

template <EntrySplit kSplit>
__device__ inline Work find_work(const Launch& p, Piece piece, const GroupExtent& extent,
                                 const RestPart* rest) {
  const int heads = static_cast<int>(p.num_heads);
  Work w;
  w.row_in_group = piece.row_tile * kTileRows;
  w.first_row = std::int64_t{extent.begin} * heads + w.row_in_group;
  w.rows = min(kTileRows, (extent.end - extent.begin) * heads - w.row_in_group);
  w.request = p.request ? p.request[piece.group] : 0;
  w.entries = p.entries + piece.group * p.entry_stride;
  const int count = max(0, min(static_cast<int>(p.entry_stride), extent.count));
  const int tiles = w.rows > 0 ? (count + kTileKeys - 1) / kTileKeys : 0;
  w.tile_begin = 0;
  w.tile_end = tiles;
  w.resumed = w.suspended = false;
  if constexpr (kSplit == EntrySplit::kCluster) {
    const int rank = cluster_rank();
    w.tile_begin = tiles * rank / kClusterCtas;
    w.tile_end = tiles * (rank + 1) / kClusterCtas;
  } else if (rest) {
    const int pairs = (tiles + 1) / 2;
    w.tile_begin = 2 * cut_of(p.rounds, pairs, rest->begin);
    w.tile_end = min(tiles, 2 * cut_of(p.rounds, pairs, rest->end));
    const bool any = w.tile_begin < w.tile_end;
    w.resumed = any && w.tile_begin > 0;
    w.suspended = any && w.tile_end < tiles;
    if (!any && (tiles > 0 || rest->end < p.rounds.cutters)) w.rows = 0;  // others do it
  }
  w.entries_end = min(count, w.tile_end * kTileKeys);
  return w;
}

// By one thread, so that the others need no divisions.
template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void find_course(const Launch& p, Course& course) {
  constexpr int kShares = kSplit == EntrySplit::kCluster ? kClusterCtas : 1;
  const int tiles = row_tiles<kKind>(p), ctas = static_cast<int>(gridDim.x) / kShares,
            cta = static_cast<int>(blockIdx.x) / kShares;
  const auto piece = [=](int i) { return tiles == 1 ? Piece{i, 0} : Piece{i / tiles, i % tiles}; };
  course.first = piece(cta);
  if constexpr (kSplit == EntrySplit::kWhole) {
    course.step = piece(ctas);
    course.rest = p.by_length.used ? CtaRest{.works = INT_MAX} : rest_of(p.rounds, cta);
    for (int i = 0; i < 2; ++i)
      course.cut[i] = piece(p.rounds.whole * ctas + course.rest.parts[i].piece);
  }
}

// The pairs of tiles of all work of this CTA, one after the other.
template <EntryKind kKind, EntrySplit kSplit>
struct Walk {
  __device__ Walk(const Launch& launch, Shared& block)
      : p(launch), shared(block), course(block.course), whole(course.first) {
    look_ahead();
  }

  // The next work; false where there is none.
  __device__ bool next_work() {
    if (turn == (kSplit == EntrySplit::kWhole ? course.rest.works : 1) || whole.group == kNoGroup)
      return false;
    ++turn;
    work = find_work<kSplit>(p, part < 0 ? whole : course.cut[part], extent,
                             part < 0 ? nullptr : &course.rest.parts[part]);
    if constexpr (kSplit == EntrySplit::kWhole) {
      if (part < 0) advance();
      look_ahead();
    }
    return true;
  }
  // The next pair, of this work or of the next that has any.
  __device__ bool next_pair() {
    tile += 2;
    begins = false;
    while (tile >= work.tile_end) {
      if (!next_work()) return false;
      tile = work.tile_begin;
      begins = true;
    }
    return true;
  }
  __device__ void advance() {
    whole.group += course.step.group;
    whole.row_tile += course.step.row_tile;
    const int tiles = row_tiles<kKind>(p);
    if (whole.row_tile >= tiles) whole.row_tile -= tiles, ++whole.group;
  }
  // What comes in turn, and its extent, so that nobody waits for it.
  __device__ void look_ahead() {
    if (kSplit == EntrySplit::kWhole) {
      part = turn == course.rest.parts[0].turn ? 0 : turn == course.rest.parts[1].turn ? 1 : -1;
    }
    if (kKind == EntryKind::kUnion && kSplit == EntrySplit::kWhole && p.by_length.used &&
        turn >= kOwnRounds) {
      mbarrier_wait(&shared.dealt_known, 0);
      whole.group = course.dealt.group[turn - kOwnRounds];
      if (whole.group == kNoGroup) return;
    }
    extent = read_extent<kKind>(p, part < 0 ? whole.group : course.cut[part].group);
  }

  // Whether the pair has its second tile.
  __device__ bool has_both() const { return tile + 1 < work.tile_end; }

  const Launch& p;
  Shared& shared;
  const Course& course;
  int turn = 0;
  Piece whole;         // the next that is not cut
  int part = -1;       // of the rest, if that comes next
  GroupExtent extent;  // of what comes next
  Work work = {};
  int tile = 0;         // the pair's first
  bool begins = false;  // whether that is the work's first
};

}  // namespace indexcache::device
