// Keys of a walk on their way to shared memory: the fetching warpgroup.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/tensor_copy.cuh"
#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

// Where keys lie in device memory: an argument of the kernel beside the op's own.
struct KeyMaps {
  CUtensorMap rows;    // [pages or 1][keys][bytes of a row]; box: 64 rows of 128 bytes
  CUtensorMap scales;  // [pages or 1][1][keys]; box: 64
};

__device__ __forceinline__ int page_index(const IndexTopkCudaParams& p, int request, int key) {
  return p.block_table[std::int64_t{request} * p.table_stride + key / kPageKeys];
}
__device__ __forceinline__ const std::uint8_t* page_of_key(const IndexTopkCudaParams& p,
                                                           int request, int key) {
  return static_cast<const std::uint8_t*>(p.keys) + page_index(p, request, key) * p.page_stride;
}

// Boxes of 64 keys that follow each other come by tensor copies, which one lane of a warp asks for, a
// warp for each box of a tile. The scattered keys of a sample come by copies of 16 bytes; a warp of the fetchers then has
// a quarter of a tile's rows, kRows. Whoever fetches, a tile's barrier gets kFetchWarps arrivals.
template <class L>
struct KeyFetcher {
  using Place = RingPlace<L::kStages>;
  static constexpr int kBlocks = L::kTileKeys / kBlockRows;
  static_assert(kFetchWarps % kBlocks == 0);
  static constexpr int kTileBytes = L::kKeyBytes + (L::Format::kHasScale ? L::kTileKeys * 4 : 0);
  static constexpr int kLanesPerRow = L::kRow / 16, kRowsPerCopy = 32 / kLanesPerRow;
  static constexpr int kRows = L::kTileKeys / kFetchWarps;
  static constexpr int kCopies = kRows / kRowsPerCopy;
  static constexpr int kInFlight = L::kStages / 2;  // tiles whose copies are under way

  const IndexTopkCudaParams& p;
  const KeyMaps& maps;
  int request;
  GroupShared<L>& shared;
  int warp = static_cast<int>(threadIdx.x) % kFetchers / 32;
  int lane = static_cast<int>(threadIdx.x) % 32;

  // The page of this warp's block i of a walk; past its end that of the last key.
  __device__ __forceinline__ int page_of_block(const KeyWalk& walk, int i) const {
    if (!L::kPaged) return 0;
    const int key = (i * kBlocks + warp) * kBlockRows;
    return page_index(p, request, walk.key_in_blocks(min(key, walk.count - 1)));
  }

  // One warp of kBlocks: its block of each tile of a walk over all keys, as the ring has room for them. To
  // ask for a box takes hundreds of cycles, so the warps share them out.
  __device__ __forceinline__ void fetch_boxes(const KeyWalk& walk, Place place) const {
    int pages = page_of_block(walk, lane), next_pages = page_of_block(walk, 32 + lane);
    for (int i = 0; i * L::kTileKeys < walk.count; ++i) {
      if (L::kPaged && i > 0 && i % 32 == 0) {
        pages = next_pages;
        next_pages = page_of_block(walk, i + 32 + lane);
      }
      std::uint64_t* full = &shared.full[place.stage];
      const int page = L::kPaged ? __shfl_sync(kAllLanes, pages, i % 32) : 0;
      const int key = L::kPaged ? 0 : walk.key_in_blocks((i * kBlocks + warp) * kBlockRows);
      mbarrier_wait(&shared.empty[place.stage], place.parity ^ 1);
      if (lane == 0) {
        mbarrier_expect(full, kTileBytes / kBlocks, kFetchWarps / kBlocks);
#pragma unroll
        for (int half = 0; half < L::kHalves; ++half) {
          const int to = (warp * L::kHalves + half) * (kBlockRows * 128);
          copy_box(shared_address(shared.keys[place.stage] + to), maps.rows, half * 128, key, page,
                   full);
        }
        if constexpr (L::Format::kHasScale) {
          copy_box(shared_address(shared.scales[place.stage] + warp * kBlockRows), maps.scales, key,
                   0, page, full);
        }
      }
      __syncwarp();
      place = place.next();
    }
  }

  __device__ __forceinline__ int first_row() const { return warp * kRows; }
  // Where this lane's 16 bytes of the first copy go, and of a later one: rows of a copy follow each
  // other, and a warp's first row is a multiple of 8.
  __device__ __forceinline__ std::uint32_t first_place(int stage) const {
    const int row = first_row() + lane / kLanesPerRow, unit = lane % kLanesPerRow;
    return shared_address(shared.keys[stage]) +
           (row / kBlockRows * L::kHalves + unit / 8) * (kBlockRows * 128) +
           swizzled_offset(row % kBlockRows, unit % 8);
  }
  static __device__ __forceinline__ std::uint32_t place_of(std::uint32_t first, int copy) {
    return (first ^ (copy * kRowsPerCopy % 8) << 4) + copy * kRowsPerCopy * 128;
  }

  // The rows of a tile of a sample; past its end the last key stands in. A lane finds every 32nd row,
  // so that a warp waits once for the table of pages.
  __device__ __forceinline__ void gather_rows(int stage, const KeyWalk& walk, int first) const {
    const std::uint8_t* rows[kRows / 32];
#pragma unroll
    for (int i = 0; i < kRows / 32; ++i) {
      const int row = first_row() + 32 * i + lane,
                key = walk.scattered_key(min(first + row, walk.count - 1));
      const void* scale = p.key_scale + key;
      if (L::kPaged) {
        const std::uint8_t* page = page_of_key(p, request, key);
        rows[i] = page + key % kPageKeys * L::kRow;
        scale = page + kPageScales + key % kPageKeys * 4;
      } else {
        rows[i] = static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
      }
      if (L::Format::kHasScale) copy_4(shared_address(&shared.scales[stage][row]), scale);
    }
    const std::uint32_t to = first_place(stage);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = i * kRowsPerCopy;  // this lane's is lane / kLanesPerRow further
      const auto from = __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(rows[row / 32]),
                                    row % 32 + lane / kLanesPerRow);
      copy_16(place_of(to, i),
              reinterpret_cast<const std::uint8_t*>(from) + lane % kLanesPerRow * 16, true);
    }
  }

  // A warp tells the scorers of the oldest stage, once all copies but those of the newest `pending`
  // tiles have landed. Matrix products read through another proxy than copies write, hence the fence;
  // here it delays nobody.
  template <int pending>
  __device__ __forceinline__ void announce(Place& landed) const {
    wait_for_copies<pending>();
    fence_for_wgmma();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&shared.full[landed.stage]);
    landed = landed.next();
  }

  // The tiles of a sample.
  __device__ __forceinline__ void fetch_sample(const KeyWalk& walk, Place place) const {
    Place landed = place;
    for (int first = 0; first < walk.count; first += L::kTileKeys) {
      mbarrier_wait(&shared.empty[place.stage], place.parity ^ 1);
      gather_rows(place.stage, walk, first);
      commit_copies();
      if (first >= kInFlight * L::kTileKeys) announce<kInFlight>(landed);
      place = place.next();
    }
    wait_for_copies<0>();
    while (landed.stage != place.stage || landed.parity != place.parity) announce<0>(landed);
  }

  // The fetchers: the tiles of a walk.
  __device__ __forceinline__ void fetch(const KeyWalk walk, Place& place) const {
    if (walk.scattered()) {
      fetch_sample(walk, place);
    } else if (warp < kBlocks) {
      fetch_boxes(walk, place);
    }
    place = place.after((walk.count + L::kTileKeys - 1) / L::kTileKeys);
  }
};

}  // namespace indexcache::index_topk_device
