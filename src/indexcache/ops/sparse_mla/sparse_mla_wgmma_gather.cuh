// The gathering warpgroup: brings the latents of a pair of tiles into shared memory, bf16 as swizzled
// blocks, e4m3 as it is, and says by masks which query selected which. Entries without a key become
// zeros.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/tensor_copy.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_convert.cuh"

namespace indexcache::device {

constexpr int kGatherWarps = kWarpgroup / 32;

// Arrivals that complete a part's copies: of all threads, and of those that wrote masks, which come
// with the second part.
__device__ constexpr int copy_arrivals(Part part) {
  return kWarpgroup + (part == kRightPart ? kGatherWarps : 0);
}

// A pair of tiles: whether there is one, whether it has the second; where a work begins with it that
// work's first row of q, else -1.
struct PairPlace {
  int first_row = -1;
  bool any = false, both = false;
};

// What a lane found for its entry of a pair: where the latent lies, in bytes from the store's data,
// below 0 for no key, and whose it is.
struct Found {
  std::int64_t offset;
  std::uint32_t mask;
  PairPlace place;
};

// The keys of coming pairs, an entry a thread: a warp finds those whose rows it gathers, lane 16 T +
// 4 r + s that of row 16 r + 4 warp + s of tile T. A look-up has two reads, one after the other: the
// entry and, in pages, the block table. Each is asked for a pair before it is used, so none is
// waited for.
template <EntryKind kKind, EntrySplit kSplit>
class KeyFinder {
 public:
  __device__ KeyFinder(const Launch& p, Shared& shared) : p_(p), ahead_(p, shared) { ask_entry(); }
  // The first pair's, before begin().
  __device__ PairPlace first() const { return asked_; }
  // Waits for the first entry: q is asked for before that.
  __device__ void begin() {
    ask_page();
    ask_entry();
  }
  // Whether next() has a pair.
  __device__ bool more() const { return found_.any; }

  __device__ Found next() {
    const std::int64_t row = id_ & ((std::int64_t{1} << p_.kv.page_shift) - 1);
    const std::int64_t offset = page_ * p_.kv.page_stride + row * p_.kv.row_stride;
    const bool present = mask_ != 0 && page_ >= 0;
    const Found found = {present ? offset : -1, present ? mask_ : 0, found_};
    ask_page();
    ask_entry();
    return found;
  }

 private:
  // The next pair's entry; where there is none, one that has no key.
  __device__ void ask_entry() {
    has_ = false;
    asked_ = {};
    if (ended_ || !ahead_.next_pair()) {
      ended_ = true;
      return;
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    const int position =
        ahead_.tile * kTileKeys + lane / 16 * kTileKeys + lane % 16 / 4 * 16 + 4 * warp + lane % 4;
    has_ = position < ahead_.work.entries_end;
    if (has_) entry_ = __ldg(ahead_.work.entries + position);
    request_ = ahead_.work.request;
    asked_ = {ahead_.begins ? static_cast<int>(ahead_.work.first_row) : -1, true,
              ahead_.has_both()};
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
    found_ = asked_;
  }

  const Launch& p_;
  Walk<kKind, kSplit> ahead_;  // at the pair whose entries are asked for next
  bool ended_ = false, has_ = false;
  PairPlace asked_, found_;  // of the pair whose entry was asked for last, and the one before
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

// The work's rows of q and, up to 64, what follows them, once the logits of the work before are done.
__device__ inline void load_queries(const CUtensorMap& q, int first_row, Shared& shared,
                                    int works) {
  if (threadIdx.x % kWarpgroup == 0) {
    mbarrier_wait(&shared.q_empty, (works & 1) ^ 1);
    mbarrier_expect(&shared.q_full, sizeof shared.q, 1);
    for (int block = 0; block < kBlocks; ++block) {
      copy_box(shared_address(shared.q) + block * kBlockBytes, q, block * 128, first_row, 0,
               &shared.q_full);
    }
  }
  __syncwarp();
}

// A row of a part: bf16 to its place. e4m3: the values as they are, to where the second half of
// their bf16 values will stand in the same row, the row's scales to the first half.
template <LatentFormat kFormat>
__device__ inline void copy_row(std::uint32_t tile, Part part, int row, const unsigned char* latent,
                                bool present, std::uint64_t policy, int lane) {
  const std::uint32_t to = values_of(tile, part);
  if constexpr (kFormat == LatentFormat::kBFloat16) {
#pragma unroll
    for (int block = 0; block < kPartBlocks; ++block) {
      copy_16(to + block * kBlockBytes + swizzled_offset(row, lane),
              latent + 512 * part + 128 * block + 16 * lane, present, policy);
    }
    if (part == kRightPart) {
      copy_16(tile + kLatentBlocks * kBlockBytes + swizzled_offset(row, lane),
              latent + 2 * kLatentDim + 16 * lane, present, policy);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      copy_16(to + raw_offset(row, 16 * i + 2 * lane), latent + 256 * part + 128 * i + 16 * lane,
              present, policy);
    }
    if (lane == 0) copy_16(to + swizzled_offset(row, 0), latent + kLatentDim, present, policy);
    if (part == kRightPart) {
      copy_16(tile + kLatentBlocks * kBlockBytes + swizzled_offset(row, lane),
              latent + kLatentDim + 16 + 16 * lane, present, policy);
    }
  }
}

template <EntryKind kKind, LatentFormat kFormat, EntrySplit kSplit>
__device__ inline void gather(const Launch& p, const CUtensorMap& q, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  const auto* data = static_cast<const unsigned char*>(p.kv.data);
  auto& landed = kFormat == LatentFormat::kE4M3 ? shared.raw : shared.full;
  const std::uint64_t policy = keep_in_l2();
  KeyFinder<kKind, kSplit> finder(p, shared);
  if (finder.first().any) load_queries(q, finder.first().first_row, shared, 0);
  finder.begin();
  for (int n = 0, works = 0; finder.more(); ++n) {
    const Found found = finder.next();
    const bool both = found.place.both;
    if (found.place.first_row >= 0) {
      if (works > 0) load_queries(q, found.place.first_row, shared, works);
      ++works;
    }
    // Shuffles queue behind copies: bf16's are done once a tile. e4m3 has too few registers for that.
    constexpr bool kOnce = kFormat == LatentFormat::kBFloat16;
    std::int64_t offsets[kRowRounds] = {};
#pragma unroll 1
    for (int i = 0; i < kPairParts; ++i) {
      const auto [tile, part] = part_in_order(i);
      if (kOnce && part == kLeftPart) {
#pragma unroll
        for (int round = 0; round < kRowRounds; ++round)
          offsets[round] = row_offset(found, tile, round);
      }
      mbarrier_wait(&shared.empty[tile][part], (n & 1) ^ 1);
      if (tile == 0 || both) {
#pragma unroll
        for (int round = 0; round < kRowRounds; ++round) {
          const std::int64_t offset = kOnce ? offsets[round] : row_offset(found, tile, round);
          copy_row<kFormat>(shared_address(shared.kv[tile]), part, first + round * kRowsAtOnce,
                            data + max(offset, std::int64_t{0}), offset >= 0, policy, lane);
        }
      }
      mbarrier_arrive_after_copies(&landed[tile][part]);
      if (part == kRightPart) {
        write_masks<kKind>(shared.masks[tile], tile, found);
        if (thread % 32 == 0) mbarrier_arrive(&landed[tile][part]);
      }
    }
  }
  wait_for_copies();
}

}  // namespace indexcache::device
