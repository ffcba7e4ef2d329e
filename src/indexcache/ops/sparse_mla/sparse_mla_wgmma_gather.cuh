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

// Arrivals that complete a part's copies: of all threads, and of those that wrote masks.
__device__ constexpr int copy_arrivals(TilePart t) {
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
#ifdef PREFETCH
__device__ inline void prefetch_latent(const unsigned char* from, int bytes) {
#pragma unroll
  for (int at = 0; at < bytes; at += 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from + at)) : "memory");
}
#endif
template <EntryKind kKind, EntrySplit kSplit>
class KeyFinder {
 public:
  // `first` is at the first pair, if there are `any`.
  __device__ KeyFinder(const Walk<kKind, kSplit>& first, bool any)
      : p_(first.p), ahead_(first), more_(any) {
    ask_entry();
  }
  // Waits for the first entry: q is asked for before that.
  __device__ void begin() {
    ask_page();
    ask_entry();
  }

  __device__ Found next() {
    const std::int64_t row = id_ & ((std::int64_t{1} << p_.kv.page_shift) - 1);
    const std::int64_t offset = page_ * p_.kv.page_stride + row * p_.kv.row_stride;
    const bool present = mask_ != 0 && page_ >= 0;
    const Found found = {present ? offset : -1, present ? mask_ : 0};
#ifdef PREFETCH
    if (present)
      prefetch_latent(static_cast<const unsigned char*>(p_.kv.data) + offset,
                      p_.kv.format == LatentFormat::kE4M3 ? 656 : 1152);
#endif
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
  bool more_, has_ = false;
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

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather(const SparseMlaWgmmaParams& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data) + 16 * lane;
  const std::uint64_t policy = keep_in_l2();
  Walk<kKind, kSplit> walk(p);
  bool more = walk.next_pair();
  KeyFinder<kKind, kSplit> finder(walk, more);
  if (more) load_queries(p, walk.work, shared, 0);
  finder.begin();
  for (int n = 0, works = 1; more; ++n) {
    const Found found = finder.next();
    const bool both = walk.has_both();  // or tile 1 is not looked at
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

// e4m3: a part's values are copied as they are to the second half of their place, 256 bytes a row,
// the RoPE block unswizzled, and converted from there.
constexpr int kRawBytes = 256;
__device__ inline std::uint32_t values_of(std::uint32_t tile, Part part) {
  return tile + (part == kLeftPart ? 0 : kLeftBlocks) * kBlockBytes;
}
__device__ inline std::uint32_t raw_of(std::uint32_t tile, Part part, int row) {
  return values_of(tile, part) + 2 * kBlockBytes + row * kRawBytes;
}
__device__ inline std::uint32_t rope_of(std::uint32_t tile, int row) {
  return tile + kLatentBlocks * kBlockBytes + row * 128;
}

__device__ inline void write_zeros(std::uint32_t to, int bytes) {
  for (int at = 0; at < bytes; at += 16) store_16(to + at, {});
}

// A lane copies the row whose key it found.
__device__ inline void copy_raw(const unsigned char* data, Shared& shared, TilePart t,
                                const Found& found, std::uint64_t policy) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  const int row = lane % 16 / 4 * 16 + 4 * warp + lane % 4;
  const bool mine = lane / 16 == t.tile, present = mine && found.offset >= 0;
  const std::uint32_t tile = shared_address(shared.kv[t.tile]), raw = raw_of(tile, t.part, row);
  if (mine && !present) {
    write_zeros(raw, kRawBytes);
    if (t.part == kRightPart) write_zeros(rope_of(tile, row), 128);
  }
  const int rows = __popc(__ballot_sync(0xFFFFFFFF, present));
  __syncwarp();  // what lanes wrote for the converting warpgroup, before lane 0 arrives
  std::uint64_t* landed = &shared.raw[t.tile][t.part];
  if (lane == 0)
    mbarrier_arrive_expecting(landed, rows * (kRawBytes + (t.part == kRightPart ? 128 : 0)));
  if (!present) return;
  const unsigned char* from = data + found.offset;
  copy_stretch(raw, from + kRawBytes * t.part, kRawBytes, shared_address(landed), policy);
  if (t.part == kRightPart)
    copy_stretch(rope_of(tile, row), from + kLatentDim + 16, 128, shared_address(landed), policy);
}

// A row's four scales, and as they are used.
__device__ inline uint4 read_scales(const unsigned char* data, const Found& found) {
  return read_16(data + max(found.offset, std::int64_t{0}) + kLatentDim, found.offset >= 0);
}
__device__ inline uint2 rounded_scales(uint4 of) {
  return make_uint2(pack_bf16(__uint_as_float(of.x), __uint_as_float(of.y)),
                    pack_bf16(__uint_as_float(of.z), __uint_as_float(of.w)));
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void gather_raw(const SparseMlaWgmmaParams& p, Shared& shared) {
  const auto* data = static_cast<const unsigned char*>(p.kv.data);
  const std::uint64_t policy = keep_in_l2();
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  Walk<kKind, kSplit> walk(p);
  bool more = walk.next_pair();
  KeyFinder<kKind, kSplit> finder(walk, more);
  if (more) load_queries(p, walk.work, shared, 0);
  finder.begin();
  Found next = finder.next();
  uint4 next_scales = read_scales(data, next);
  int n = 0;
  for (int works = 1; more; ++n) {
    const Found found = next;
    const uint2 scales = rounded_scales(next_scales);
    const bool both = walk.has_both();
    next = finder.next();
    next_scales = read_scales(data, next);
#pragma unroll
    for (int i = 0; i < kPairParts; ++i) {
      const TilePart t = part_in_order(i);
      mbarrier_wait(&shared.empty[t.tile][t.part], (n & 1) ^ 1);
      if (i == 0 && threadIdx.x % kWarpgroup == 0) shared.tiles = both ? 2 : 1;
      if (brings_masks(i)) {
        write_masks<kKind>(shared.masks[t.tile], t.tile, found);
      } else if (lane / 16 == t.tile) {
        shared.scales[t.tile][lane % 16 / 4 * 16 + 4 * warp + lane % 4] = scales;
      }
      if (t.tile == 0 || both) {
        copy_raw(data, shared, t, found, policy);
      } else if (lane == 0) {
        mbarrier_arrive(&shared.raw[t.tile][t.part]);
      }
    }
    more = walk.next_pair();
    if (more && walk.begins) load_queries(p, walk.work, shared, works++);
  }
  mbarrier_wait(&shared.empty[0][kLeftPart], (n & 1) ^ 1);
  if (threadIdx.x % kWarpgroup == 0) shared.tiles = 0;
  if (lane == 0) mbarrier_arrive(&shared.raw[0][kLeftPart]);
  wait_for_copies();
}

// Eight lanes share a row, eight values of each of a part's blocks a lane. A row of odd number takes
// the blocks in another order, so that the reads of two rows reach all banks. What stands where the
// first two blocks' values go is not raw; the other two have to wait until all have read.
__device__ inline void convert_part(Shared& shared, TilePart t, int thread) {
  const int lane = thread % kRowLanes, first = thread / kRowLanes, odd = first % 2;
  const std::uint32_t tile = shared_address(shared.kv[t.tile]), values = values_of(tile, t.part),
                      swizzled = swizzled_offset(first, lane);
  // Of row `first`; the rows of later rounds are a constant away.
  const std::uint32_t raw = raw_of(tile, t.part, first) + 8 * lane,
                      from[2] = {raw + odd * 64, raw + 64 - odd * 64},
                      to[2] = {values + swizzled + odd * kBlockBytes,
                               values + swizzled + kBlockBytes - odd * kBlockBytes};
  constexpr int kRawStep = kRowsAtOnce * kRawBytes, kStep = kRowsAtOnce * 128;
  const auto scale = [&](int round, std::uint32_t bytes) {
    const uint2& scales = shared.scales[t.tile][first + round * kRowsAtOnce];
    return __byte_perm(t.part == kLeftPart ? scales.x : scales.y, 0, bytes);
  };
  uint2 held[kRowRounds][2];
#pragma unroll
  for (int round = 0; round < kRowRounds; ++round) {
    uint2 now[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      now[i] = load_8(from[i] + round * kRawStep);
      held[round][i] = load_8(from[i] + round * kRawStep + 128);
    }
    if (t.part == kRightPart) {
      const uint4 rope = load_16(rope_of(tile, first) + 16 * lane + round * kStep);
      __syncwarp();
      store_16(rope_of(tile, 0) + swizzled + round * kStep, rope);
    }
    const std::uint32_t of_first = scale(round, 0x1010);
#pragma unroll
    for (int i = 0; i < 2; ++i) store_16(to[i] + round * kStep, e4m3_to_bf16(now[i], of_first));
  }
  barrier_sync(kConvert, kWarpgroup);
#pragma unroll
  for (int round = 0; round < kRowRounds; ++round) {
    const std::uint32_t of_second = scale(round, 0x3232);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      store_16(to[i] + 2 * kBlockBytes + round * kStep, e4m3_to_bf16(held[round][i], of_second));
    }
  }
}

// Until the gathering warpgroup says that there are no more tiles.
__device__ inline void convert(Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup;
  for (int n = 0, tiles = 1; tiles > 0; ++n) {
#pragma unroll
    for (int i = 0; i < kPairParts; ++i) {
      const TilePart t = part_in_order(i);
      mbarrier_wait(&shared.raw[t.tile][t.part], n & 1);
      if (i == 0) {
        tiles = shared.tiles;
        if (tiles == 0) break;
      }
      if (t.tile < tiles) convert_part(shared, t, thread);
      mbarrier_arrive(&shared.full[t.tile][t.part]);
    }
  }
}

}  // namespace indexcache::device
