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

// The keys of coming tiles, found by the first two warps, an entry a thread. A look-up has two
// reads, one after the other: the entry and, in pages, the block table. Each is asked for a tile
// before it is used, so none is waited for.
template <EntryKind kKind, EntrySplit kSplit>
class KeyFinder {
 public:
  __device__ explicit KeyFinder(const SparseMlaWgmmaParams& params) : p_(params), ahead_(params) {
    if (threadIdx.x % kWarpgroup >= kMaskThreads) return;
    more_ = ahead_.next_tile();
    ask_entry();
    ask_page();
    ask_entry();
  }

  // Where the latent of this thread's entry of the next tile lies, in bytes from the store's data;
  // below 0: no key. And whose it is.
  __device__ std::int64_t next(std::uint32_t& mask) {
    const std::int64_t row = id_ & ((std::int64_t{1} << p_.kv.page_shift) - 1);
    const std::int64_t offset =
        mask_ == 0 || page_ < 0 ? -1 : page_ * p_.kv.page_stride + row * p_.kv.row_stride;
    mask = offset < 0 ? 0 : mask_;
    ask_page();
    ask_entry();
    return offset;
  }

 private:
  // The next tile's entry; where there is none, one that has no key.
  __device__ void ask_entry() {
    has_ = false;
    table_ = nullptr;
    if (!more_) return;
    const int position = ahead_.tile * kTileKeys + threadIdx.x % kWarpgroup;
    has_ = position < ahead_.work.count;
    if (has_) entry_ = __ldg(ahead_.work.entries + position);
    table_ = p_.kv.block_table + ahead_.work.request * p_.kv.table_stride;
    more_ = ahead_.next_tile();
  }

  __device__ void ask_page() {
    id_ = entry_;
    mask_ = 1;
    if constexpr (kKind == EntryKind::kUnion) {
      id_ = static_cast<std::uint32_t>(entry_) & kUnionIdMask;
      mask_ = static_cast<std::uint32_t>(entry_) >> kUnionIdBits;
    }
    if (!has_ || id_ < 0 || id_ >= p_.kv.num_keys) mask_ = 0;
    page_ = id_ >> p_.kv.page_shift;
    if (p_.kv.block_table && mask_ != 0) page_ = __ldg(table_ + page_);
  }

  const SparseMlaWgmmaParams& p_;
  Walk<kKind, kSplit> ahead_;  // at the tile whose entries are asked for next
  bool more_ = false, has_ = false;
  std::int32_t entry_ = 0;
  const std::int32_t* table_ = nullptr;
  std::int64_t id_ = 0, page_ = 0;
  std::uint32_t mask_ = 0;
};

// Leaves the next tile's offsets where all four warps read them; returns this thread's mask.
template <EntryKind kKind, EntrySplit kSplit>
__device__ inline std::uint32_t find_tile(KeyFinder<kKind, kSplit>& finder, Shared& shared, int n) {
  const int thread = threadIdx.x % kWarpgroup;
  std::uint32_t mask = 0;
  if (thread < kMaskThreads) shared.offsets[n % 2][thread] = finder.next(mask);
  barrier_sync(kGather, kWarpgroup);
  return mask;
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
  KeyFinder<kKind, kSplit> finder(p);
  Walk<kKind, kSplit> walk(p);
  std::uint32_t mask = find_tile(finder, shared, 0);
  for (int n = 0, works = 0; walk.next_tile(); ++n) {
    const int stage = n % kStages;
    const std::uint32_t to = shared_address(shared.kv[stage]) + swizzled_offset(first, lane);
    std::int64_t offsets[kRowRounds];
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round)
      offsets[round] = shared.offsets[n % 2][first + round * kRowsAtOnce];
    mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
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
    if (walk.tile == walk.work.tile_begin) load_queries(p, walk.work, shared, works++);
    mask = find_tile(finder, shared, n + 1);
  }
  wait_for_copies();
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather_e4m3(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data);
  const std::uint64_t policy = keep_in_l2();
  KeyFinder<kKind, kSplit> finder(p);
  Walk<kKind, kSplit> walk(p);
  RawRow raw[kRowRounds];
  std::uint32_t mask = 0;
  const auto fetch = [&](int n) {
    mask = find_tile(finder, shared, n);
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const std::int64_t offset = shared.offsets[n % 2][first + round * kRowsAtOnce];
      raw[round] = fetch_e4m3(data + max(offset, std::int64_t{0}), lane, offset >= 0);
    }
  };
  fetch(0);
  for (int n = 0, works = 0; walk.next_tile(); ++n) {
    const int stage = n % kStages;
    const std::uint32_t to = shared_address(shared.kv[stage]);
    mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
#pragma unroll
    for (int round = 0; round < kRowRounds; ++round) {
      const int row = first + round * kRowsAtOnce;
      const std::int64_t offset = shared.offsets[n % 2][row];
      copy_16(to + kLatentBlocks * kBlockBytes + swizzled_offset(row, lane),
              data + max(offset, std::int64_t{0}) + kLatentDim + 16 + 16 * lane, offset >= 0,
              policy);
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
    fetch(n + 1);
    if (walk.tile == walk.work.tile_begin) load_queries(p, walk.work, shared, works++);
  }
  wait_for_copies();
}

}  // namespace indexcache::device
