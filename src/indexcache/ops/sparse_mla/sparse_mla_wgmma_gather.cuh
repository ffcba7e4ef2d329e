// The gathering warpgroup: brings the latents of 64 entries at a time into a stage of shared
// memory, as swizzled bf16 blocks, and says by masks which query selected which. Entries without a
// key become zeros.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/e4m3.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_tile.cuh"

namespace indexcache::device {

constexpr int kRowLanes = 8;                         // threads that share a row
constexpr int kRowsAtOnce = kWarpgroup / kRowLanes;  // 16
constexpr int kRowRounds = kTileKeys / kRowsAtOnce;  // 4
constexpr int kMaskThreads = kTileKeys;              // of the warpgroup: two warps

// Threads whose arrivals complete a part: by their copies; besides, those that wrote masks (bf16)
// or values (e4m3).
template <LatentFormat kFormat>
__device__ constexpr int full_arrivals(int part) {
  if (kFormat == LatentFormat::kBFloat16) return kWarpgroup + (part == 1 ? kMaskThreads : 0);
  return kWarpgroup + (part == 1 ? kWarpgroup : 0);
}

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

// The work's rows of q, once the logits of the work before are done.
__device__ inline void load_queries(const SparseMlaWgmmaParams& p, const Work& w, Shared& shared,
                                    int works) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes;
  mbarrier_wait(&shared.q_empty, (works & 1) ^ 1);
  const auto* q =
      static_cast<const unsigned char*>(p.q) + w.first_row * (kBlocks * 128) + lane * 16;
#pragma unroll
  for (int round = 0; round < kRowRounds; ++round) {
    const int row = thread / kRowLanes + round * kRowsAtOnce;
    const bool present = row < w.rows;
    const std::uint32_t to = shared_address(shared.q) + swizzled_offset(row, lane);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      copy_16(to + block * kBlockBytes, q + (present ? row : 0) * kBlocks * 128 + block * 128,
              present);
    }
  }
  mbarrier_arrive_after_copies(&shared.q_full);
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

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather_bf16(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data) + 16 * lane;
  const std::uint64_t policy = keep_in_l2();
  Walk<kKind, kSplit> walk(p);
  std::int64_t offsets[kRowRounds];
  std::uint32_t mask = 0;
  const auto look_up = [&] {
    const int at = walk.tile * kTileKeys;
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      offsets[round] = find_key<kKind>(p, walk.work, at + first + round * kRowsAtOnce).offset;
    }
    if (thread < kMaskThreads) mask = find_key<kKind>(p, walk.work, at + thread).mask;
  };
  bool more = walk.next_tile();
  if (more) look_up();
  for (int n = 0, works = 0; more; ++n) {
    const int stage = n % kStages;
    const Work work = walk.work;
    const bool begins = walk.tile == work.tile_begin;
    mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
    const std::uint32_t to = shared_address(shared.kv[stage]) + swizzled_offset(first, lane);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int round = 0; round < kRowRounds; ++round) {
        const unsigned char* from = data + max(offsets[round], std::int64_t{0});
#pragma unroll
        for (int block = part * kFirstBlocks; block < (part == 0 ? kFirstBlocks : kBlocks);
             ++block) {
          copy_16(to + round * kRowsAtOnce * 128 + block * kBlockBytes, from + block * 128,
                  offsets[round] >= 0, policy);
        }
      }
      mbarrier_arrive_after_copies(&shared.full[stage][part]);
    }
    if (thread < kMaskThreads) {
      write_masks<kKind>(shared.masks[stage], mask, thread);
      mbarrier_arrive(&shared.full[stage][1]);
    }
    more = walk.next_tile();
    if (more) look_up();
    if (begins) load_queries(p, work, shared, works++);
  }
  wait_for_copies();
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather_e4m3(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data);
  const std::uint64_t policy = keep_in_l2();
  Walk<kKind, kSplit> walk(p);
  std::int64_t offsets[kRowRounds];
  RawRow raw[kRowRounds];
  std::uint32_t mask = 0;
  const auto fetch = [&] {
    const int at = walk.tile * kTileKeys;
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const std::int64_t offset =
          find_key<kKind>(p, walk.work, at + first + round * kRowsAtOnce).offset;
      raw[round] = fetch_e4m3(data + max(offset, std::int64_t{0}), lane, offset >= 0);
      offsets[round] = offset;
    }
    if (thread < kMaskThreads) mask = find_key<kKind>(p, walk.work, at + thread).mask;
  };
  bool more = walk.next_tile();
  if (more) fetch();
  for (int n = 0, works = 0; more; ++n) {
    const int stage = n % kStages;
    const std::uint32_t to = shared_address(shared.kv[stage]);
    mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const std::uint32_t at =
          to + kLatentBlocks * kBlockBytes + swizzled_offset(first + round * kRowsAtOnce, lane);
      copy_16(at, data + max(offsets[round], std::int64_t{0}) + kLatentDim + 16 + 16 * lane,
              offsets[round] >= 0, policy);
    }
    mbarrier_arrive_after_copies(&shared.full[stage][1]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int round = 0; round < kRowRounds; ++round) {
#pragma unroll
        for (int quarter = 2 * part; quarter < 2 * part + 2; ++quarter) {
          const float scale = __shfl_sync(0xFFFFFFFF, raw[round].scale, quarter, kRowLanes);
          store_e4m3(to, first + round * kRowsAtOnce, lane, quarter, raw[round].values[quarter],
                     scale);
        }
      }
      if (part == 1 && thread < kMaskThreads) write_masks<kKind>(shared.masks[stage], mask, thread);
      fence_for_wgmma();
      mbarrier_arrive(&shared.full[stage][part]);
    }
    if (walk.tile == walk.work.tile_begin) load_queries(p, walk.work, shared, works++);
    more = walk.next_tile();
    if (more) fetch();
  }
  wait_for_copies();
}

}  // namespace indexcache::device
