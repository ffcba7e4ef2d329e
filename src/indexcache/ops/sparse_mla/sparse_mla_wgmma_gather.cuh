// The gathering warpgroup: brings the latents of a pair of tiles into shared memory, as swizzled
// bf16 blocks, and says by masks which query selected which. Entries without a key become zeros.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/e4m3.cuh"
#include "indexcache/kernels/wide_access.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_tile.cuh"

namespace indexcache::device {

constexpr int kRowLanes = 8;                         // threads that share a row
constexpr int kRowsAtOnce = kWarpgroup / kRowLanes;  // 16
constexpr int kRowRounds = kTileKeys / kRowsAtOnce;  // 4
constexpr int kGatherWarps = kWarpgroup / 32;

// The order in which the parts of a pair are needed, and so gathered.
struct TilePart {
  int tile;
  Part part;
};
constexpr int kPairParts = 4;
__device__ constexpr TilePart part_in_order(int i) {
  return {i % 2, i == 0 || i == 3 ? kLeftPart : kRightPart};
}
// The second part of each tile in that order brings the tile's masks.
__device__ constexpr bool brings_masks(int i) { return i >= 2; }

// Arrivals that complete a part: of all threads' copies, and of those that wrote masks (bf16) or
// values (e4m3).
template <LatentFormat kFormat>
__device__ constexpr int full_arrivals(TilePart t) {
  if (kFormat == LatentFormat::kE4M3) return t.part == kRightPart ? 2 * kWarpgroup : kWarpgroup;
  const bool masks = t.tile == 0 ? t.part == kRightPart : t.part == kLeftPart;
  return kWarpgroup + (masks ? kGatherWarps : 0);
}

// What a lane found for its entry of a pair: where the latent lies, in bytes from the store's data,
// below 0 for no key, and whose it is.
struct Found {
  std::int64_t offset;
  std::uint32_t mask;
};

// The keys of coming pairs, an entry a thread: a warp finds those whose rows it gathers, lane 16 T +
// 4 r + s that of row 16 r + 4 warp + s of tile T. A look-up has two reads, one after the other: the
// entry and, in pages, the block table. Each is asked for a pair before it is used, so none is
// waited for.
template <EntryKind kKind, EntrySplit kSplit>
class KeyFinder {
 public:
  __device__ explicit KeyFinder(const SparseMlaWgmmaParams& params) : p_(params), ahead_(params) {
    more_ = ahead_.next_pair();
    ask_entry();
    ask_page();
    ask_entry();
  }

  __device__ Found next() {
    const std::int64_t row = id_ & ((std::int64_t{1} << p_.kv.page_shift) - 1);
    const std::int64_t offset = page_ * p_.kv.page_stride + row * p_.kv.row_stride;
    const bool present = mask_ != 0 && page_ >= 0;
    const Found found = {present ? offset : -1, present ? mask_ : 0};
    ask_page();
    ask_entry();
    return found;
  }

 private:
  // The next pair's entry; where there is none, one that has no key.
  __device__ void ask_entry() {
    has_ = false;
    if (!more_) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    const int position =
        ahead_.tile * kTileKeys + lane / 16 * kTileKeys + lane % 16 / 4 * 16 + 4 * warp + lane % 4;
    has_ = position < ahead_.work.entries_end;
    if (has_) entry_ = __ldg(ahead_.work.entries + position);
    request_ = ahead_.work.request;
    more_ = ahead_.next_pair();
  }

  __device__ void ask_page() {
    id_ = entry_;
    mask_ = 1;
    if constexpr (kKind == EntryKind::kUnion) {
      id_ = static_cast<std::int32_t>(static_cast<std::uint32_t>(entry_) & kUnionIdMask);
      mask_ = static_cast<std::uint32_t>(entry_) >> kUnionIdBits;
    }
    if (!has_ || id_ < 0 || id_ >= p_.kv.num_keys) mask_ = 0;
    page_ = id_ >> p_.kv.page_shift;
    if (p_.kv.block_table && mask_ != 0)
      page_ = __ldg(p_.kv.block_table + request_ * p_.kv.table_stride + page_);
  }

  const SparseMlaWgmmaParams& p_;
  Walk<kKind, kSplit> ahead_;  // at the pair whose entries are asked for next
  bool more_ = false, has_ = false;
  int request_ = 0;
  std::int32_t entry_ = 0, id_ = 0, page_ = 0;
  std::uint32_t mask_ = 0;
};

// The offset that this thread gathers row round `round` of `tile` from.
__device__ inline std::int64_t row_offset(const Found& found, int tile, int round) {
  return __shfl_sync(0xFFFFFFFF, found.offset,
                     16 * tile + 4 * round + threadIdx.x % 32 / kRowLanes);
}

// The warp's bits of the masks of a tile.
template <EntryKind kKind>
__device__ inline void write_masks(std::uint32_t (&masks)[4][2], int tile, const Found& found) {
  const int warp = threadIdx.x % kWarpgroup / 32;
#pragma unroll
  for (int query = 0; query < (kKind == EntryKind::kUnion ? kGroupQueries : 1); ++query) {
    const std::uint32_t bits = __ballot_sync(0xFFFFFFFF, found.mask >> query & 1);
    if (threadIdx.x % 32 == 0) {
      reinterpret_cast<std::uint16_t*>(masks[query])[warp] =
          static_cast<std::uint16_t>(bits >> 16 * tile);
    }
  }
}

// The work's rows of q, once the logits of the work before are done. Before the first look-up of a
// key, which takes longer.
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

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather_bf16(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data) + 16 * lane;
  const std::uint64_t policy = keep_in_l2();
  Walk<kKind, kSplit> walk(p);
  bool more = walk.next_pair();
  if (more) load_queries(p, walk.work, shared, 0);
  KeyFinder<kKind, kSplit> finder(p);
  for (int n = 0, works = 1; more; ++n) {
    const Found found = finder.next();
    const bool both = walk.tile + 1 < walk.work.tile_end;  // or tile 1 is not looked at
#pragma unroll
    for (int i = 0; i < kPairParts; ++i) {
      const auto [tile, part] = part_in_order(i);
      const std::uint32_t to = shared_address(shared.kv[tile]) + swizzled_offset(first, lane);
      mbarrier_wait(&shared.empty[tile][part], (n & 1) ^ 1);
      if (tile == 0 || both) {
#pragma unroll
        for (int round = 0; round < kRowRounds; ++round) {
          const std::int64_t offset = row_offset(found, tile, round);
          const unsigned char* from = data + max(offset, std::int64_t{0});
#pragma unroll
          for (int block = part == kLeftPart ? 0 : kLeftBlocks;
               block < (part == kLeftPart ? kLeftBlocks : kBlocks); ++block) {
            copy_16(to + round * kRowsAtOnce * 128 + block * kBlockBytes, from + block * 128,
                    offset >= 0, policy);
          }
        }
      }
      mbarrier_arrive_after_copies(&shared.full[tile][part]);
      if (brings_masks(i)) {
        write_masks<kKind>(shared.masks[tile], tile, found);
        if (thread % 32 == 0) mbarrier_arrive(&shared.full[tile][part]);
      }
    }
    more = walk.next_pair();
    if (more && walk.begins) load_queries(p, walk.work, shared, works++);
  }
  wait_for_copies();
}

// What a thread has of a part's e4m3 latents: in each of its rows 32 of the 128 that share a scale,
// in two chunks of 16. Lanes 0 to 3 of a row take the part's first 128, the others the second.
struct RawPart {
  uint4 chunks[kRowRounds][2];
  float scales[kRowRounds];
};
__device__ inline int raw_chunk(Part part, int lane, int i) {
  return 16 * part + 8 * (lane / 4) + 4 * i + lane % 4;
}

__device__ inline void fetch_row(RawPart& raw, int round, const unsigned char* data,
                                 std::int64_t offset, Part part, int lane) {
  const unsigned char* row = data + max(offset, std::int64_t{0});
#pragma unroll
  for (int i = 0; i < 2; ++i)
    raw.chunks[round][i] = read_16(row + 16 * raw_chunk(part, lane, i), offset >= 0);
  raw.scales[round] = read_4(row + kLatentDim + 4 * (2 * part + lane / 4), offset >= 0);
}

// A chunk of 16 as two of bf16, where they stand in the tile. Half of a row's lanes write their
// second one first: eight lanes then reach all banks.
__device__ inline void store_chunk(std::uint32_t tile, int row, int chunk, bool second_first,
                                   uint4 raw, std::uint32_t factor) {
  const uint2 halves[2] = {second_first ? make_uint2(raw.z, raw.w) : make_uint2(raw.x, raw.y),
                           second_first ? make_uint2(raw.x, raw.y) : make_uint2(raw.z, raw.w)};
  const std::uint32_t block = tile + chunk / 4 * kBlockBytes;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    store_16(block + swizzled_offset(row, chunk % 4 * 2 + (i ^ static_cast<int>(second_first))),
             e4m3_to_bf16(halves[i], factor));
}

// The rare part with an e4m3 NaN: all of its chunks again.
__device__ inline void spread_nan(unsigned char* tile, int row, const unsigned char* from,
                                  Part part, int lane) {
#pragma unroll 1
  for (int at = 0; at < 32; ++at) {
    const int column = 16 * raw_chunk(part, lane, at / 16) + at % 16;
    if ((from[column] & 0x7F) == 0x7F) {
      *reinterpret_cast<std::uint16_t*>(tile + column / 64 * kBlockBytes +
                                        swizzled_offset(row, column % 64 / 8) + 2 * (column % 8)) =
          0x7FFF;
    }
  }
}

// Latents are fetched into registers a part before they are stored: each row's are asked for as
// soon as those of the part before are converted.
template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather_e4m3(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data);
  Walk<kKind, kSplit> walk(p);
  bool more = walk.next_pair();
  if (more) load_queries(p, walk.work, shared, 0);
  KeyFinder<kKind, kSplit> finder(p);
  Found found = finder.next(), next = found;
  RawPart raw;
#pragma unroll
  for (int round = 0; round < kRowRounds; ++round)
    fetch_row(raw, round, data, row_offset(found, 0, round), kLeftPart, lane);
  for (int n = 0, works = 1; more; ++n) {
#pragma unroll
    for (int i = 0; i < kPairParts; ++i) {
      const auto [tile, part] = part_in_order(i);
      const auto [next_tile, next_part] = part_in_order((i + 1) % kPairParts);
      const std::uint32_t to = shared_address(shared.kv[tile]);
      if (i == 3) next = finder.next();
      mbarrier_wait(&shared.empty[tile][part], (n & 1) ^ 1);
      if (part == kRightPart) {
#pragma unroll
        for (int round = 0; round < kRowRounds; ++round) {
          const std::int64_t offset = row_offset(found, tile, round);
          copy_16(
              to + kLatentBlocks * kBlockBytes + swizzled_offset(first + round * kRowsAtOnce, lane),
              data + max(offset, std::int64_t{0}) + kLatentDim + 16 + 16 * lane, offset >= 0);
        }
        mbarrier_arrive_after_copies(&shared.full[tile][kRightPart]);
      }
      E4M3NanSeeker nans;
#pragma unroll
      for (int round = 0; round < kRowRounds; ++round) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          nans.look_at(raw.chunks[round][half]);
          store_chunk(to, first + round * kRowsAtOnce, raw_chunk(part, lane, half), lane >= 4,
                      raw.chunks[round][half], pack_bf16(raw.scales[round], raw.scales[round]));
        }
        fetch_row(raw, round, data, row_offset(i == 3 ? next : found, next_tile, round), next_part,
                  lane);
        __syncwarp();  // or the compiler moves all reads to the end of the part
      }
      if (__any_sync(0xFFFFFFFF, nans.found())) {
#pragma unroll 1
        for (int round = 0; round < kRowRounds; ++round) {
          const std::int64_t offset = row_offset(found, tile, round);
          if (offset >= 0)
            spread_nan(shared.kv[tile], first + round * kRowsAtOnce, data + offset, part, lane);
        }
      }
      if (brings_masks(i)) write_masks<kKind>(shared.masks[tile], tile, found);
      mbarrier_arrive(&shared.full[tile][part]);
    }
    found = next;
    more = walk.next_pair();
    if (more && walk.begins) load_queries(p, walk.work, shared, works++);
  }
  wait_for_copies();
}

}  // namespace indexcache::device
