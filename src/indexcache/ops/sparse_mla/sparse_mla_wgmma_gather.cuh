// The gathering warpgroup: brings the latents of 64 entries at a time into a stage of shared memory, as swizzled bf16 blocks,
// and says by masks which query selected which. Entries without a key become zeros.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/e4m3.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_tile.cuh"

namespace indexcache::device {

constexpr int kRowLanes = 8;                         // threads that share a row
constexpr int kRowsAtOnce = kWarpgroup / kRowLanes;  // 16
constexpr int kRowRounds = kTileKeys / kRowsAtOnce;  // 4
constexpr int kMaskThreads = kTileKeys;              // of the warpgroup: two warps

// Threads whose arrivals complete a stage: all by their copies; besides, those that wrote masks (bf16) or values (e4m3).
template <LatentFormat kFormat>
constexpr int kFullArrivals =
    kFormat == LatentFormat::kBFloat16 ? kWarpgroup + kMaskThreads : 2 * kWarpgroup;

struct Found {
  std::int64_t offset;  // bytes from the store's data; below 0: no key
  std::uint32_t mask;
};

template <EntryKind kKind>
__device__ inline Found find_key(const SparseMlaWgmmaParams& p, const Work& w, int position) {
  if (position >= w.count) return {-1, 0};
  const std::int32_t entry = __ldg(w.entries + position);
  std::int64_t id = entry;
  std::uint32_t mask = 1;
  if constexpr (kKind == EntryKind::kUnion) {
    id = static_cast<std::uint32_t>(entry) & kUnionIdMask;
    mask = static_cast<std::uint32_t>(entry) >> kUnionIdBits;
  }
  if (id < 0 || id >= p.kv.num_keys) return {-1, 0};
  std::int64_t page = id >> p.kv.page_shift;
  if (p.kv.block_table) page = __ldg(p.kv.block_table + w.request * p.kv.table_stride + page);
  if (page < 0) return {-1, 0};
  const std::int64_t row = id & ((std::int64_t{1} << p.kv.page_shift) - 1);
  return {page * p.kv.page_stride + row * p.kv.row_stride, mask};
}

// By the first two warps: lane by lane the masks of the tile's entries, as 64 bits a query.
template <EntryKind kKind>
__device__ inline void write_masks(std::uint32_t (&masks)[4][2], std::uint32_t mask, int thread) {
  const int half = thread / 32;
#pragma unroll
  for (int query = 0; query < (kKind == EntryKind::kUnion ? kGroupQueries : 1); ++query) {
    const std::uint32_t bits = __ballot_sync(0xFFFFFFFF, mask >> query & 1);
    if (thread % 32 == 0) masks[query][half] = bits;
  }
}

// Asks for this thread's chunk of one row: bf16 blocks [first, end), the first of them at `from`.
__device__ inline void copy_blocks(std::uint32_t to, const unsigned char* from, int first, int end,
                                   bool present, std::uint64_t policy) {
#pragma unroll
  for (int block = first; block < end; ++block) {
    copy_16(to + block * kBlockBytes, from + (block - first) * 128, present, policy);
  }
}

// The 16 e4m3 latents of 128 * quarter + 16 * lane of a row, as two chunks of bf16.
__device__ inline void store_e4m3(std::uint32_t tile, int row, int lane, int quarter, uint4 raw,
                                  float scale) {
  uint4 chunks[2];
  e4m3_to_bf16(raw, scale, chunks);
  const std::uint32_t block = tile + (2 * quarter + lane / 4) * kBlockBytes;
  // Lanes 4 to 7 write their second chunk first: eight lanes then reach all banks.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int chunk = i ^ (lane / 4);
    const uint4 v = chunk ? chunks[1] : chunks[0];
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                     block + swizzled_offset(row, 2 * (lane % 4) + chunk)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

// The part of a row that a thread fetches into registers, because it has to be converted.
struct RawRow {
  uint4 values[4];  // of each quarter of the latent
  float scale;      // of quarter lane % 4
};

__device__ inline RawRow fetch_e4m3(const unsigned char* row, int lane, bool present) {
  RawRow raw = {};
  if (present) {
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      raw.values[quarter] = __ldg(reinterpret_cast<const uint4*>(row + 128 * quarter + 16 * lane));
    }
    raw.scale = __ldg(reinterpret_cast<const float*>(row + kLatentDim) + lane % 4);
  }
  return raw;
}

template <EntryKind kKind>
__device__ inline void gather_bf16(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data) + 16 * lane;
  const std::uint64_t policy = keep_in_l2();
  std::int64_t offsets[kRowRounds];
  std::uint32_t mask = 0;
  const auto look_up = [&](int tile) {
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      offsets[round] = find_key<kKind>(p, w, tile * kTileKeys + first + round * kRowsAtOnce).offset;
    }
    if (thread < kMaskThreads) mask = find_key<kKind>(p, w, tile * kTileKeys + thread).mask;
  };
  if (w.tile_begin < w.tile_end) look_up(w.tile_begin);
  for (int tile = w.tile_begin, n = 0; tile < w.tile_end; ++tile, ++n) {
    const int stage = n % kStages;
    mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
    const std::uint32_t to = shared_address(shared.kv[stage]) + swizzled_offset(first, lane);
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const std::int64_t offset = offsets[round];
      copy_blocks(to + round * kRowsAtOnce * 128, data + max(offset, std::int64_t{0}), 0, kBlocks,
                  offset >= 0, policy);
    }
    mbarrier_arrive_after_copies(&shared.full[stage]);
    if (thread < kMaskThreads) {
      write_masks<kKind>(shared.masks[stage], mask, thread);
      mbarrier_arrive(&shared.full[stage]);
    }
    if (tile + 1 < w.tile_end) look_up(tile + 1);
  }
  wait_for_copies();
}

template <EntryKind kKind>
__device__ inline void gather_e4m3(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data);
  const std::uint64_t policy = keep_in_l2();
  std::int64_t offsets[kRowRounds];
  RawRow raw[kRowRounds];
  std::uint32_t mask = 0;
  const auto fetch = [&](int tile) {
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const std::int64_t offset =
          find_key<kKind>(p, w, tile * kTileKeys + first + round * kRowsAtOnce).offset;
      raw[round] = fetch_e4m3(data + max(offset, std::int64_t{0}), lane, offset >= 0);
      offsets[round] = offset;
    }
    if (thread < kMaskThreads) mask = find_key<kKind>(p, w, tile * kTileKeys + thread).mask;
  };
  if (w.tile_begin < w.tile_end) fetch(w.tile_begin);
  for (int tile = w.tile_begin, n = 0; tile < w.tile_end; ++tile, ++n) {
    const int stage = n % kStages;
    mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
    const std::uint32_t to = shared_address(shared.kv[stage]);
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const int row = first + round * kRowsAtOnce;
      const std::int64_t offset = offsets[round];
      copy_blocks(to + swizzled_offset(row, lane),
                  data + max(offset, std::int64_t{0}) + kLatentDim + 16 + 16 * lane, kLatentBlocks,
                  kBlocks, offset >= 0, policy);
    }
    mbarrier_arrive_after_copies(&shared.full[stage]);
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        const float scale = __shfl_sync(0xFFFFFFFF, raw[round].scale, quarter, kRowLanes);
        store_e4m3(to, first + round * kRowsAtOnce, lane, quarter, raw[round].values[quarter],
                   scale);
      }
    }
    if (thread < kMaskThreads) write_masks<kKind>(shared.masks[stage], mask, thread);
    fence_for_wgmma();
    mbarrier_arrive(&shared.full[stage]);
    if (tile + 1 < w.tile_end) fetch(tile + 1);
  }
  wait_for_copies();
}

}  // namespace indexcache::device
