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
// warp for each box of a tile, or for every other tile. The scattered keys of a sample come by copies of
// 16 bytes; each warp then has a quarter of a tile's rows, kRows. Whoever fetches, a tile's barrier gets
// kFetchWarps arrivals.
template <class L>
struct KeyFetcher {
  using Place = RingPlace<L::kStages>;
  static constexpr int kBlocks = L::kBlocks;
  static_assert(kFetchWarps % kBlocks == 0);
  static constexpr int kTileBytes = L::kKeyBytes + (L::Format::kHasScale ? L::kTileKeys * 4 : 0);
  static constexpr int kLanesPerRow = L::kRow / 16, kRowsPerCopy = 32 / kLanesPerRow;
  static constexpr int kRows = L::kTileKeys / kFetchWarps;
  static constexpr int kCopies = kRows / kRowsPerCopy;
  static constexpr int kInFlight =
      L::kStages - 2;  // tiles whose copies are under way; scorers hold two

  const IndexTopkCudaParams& p;
  const KeyMaps& maps;
  int request;
  GroupShared<L>& shared;
  int warp = static_cast<int>(threadIdx.x) % kFetchers / 32;
  int lane = static_cast<int>(threadIdx.x) % 32;

  // The warps share out the boxes of a tile, and whole tiles where there are fewer boxes.
  static constexpr int kTilesAtOnce = kFetchWarps / kBlocks;
  static_assert(kFetchWarps % kBlocks == 0 && kTilesAtOnce <= L::kStages);
  __device__ __forceinline__ int own_box() const { return warp % kBlocks; }
  __device__ __forceinline__ int own_tile(int i) const { return warp / kBlocks + i * kTilesAtOnce; }
  // The key that this warp's box of its tile i begins with, as a place in the walk.
  __device__ __forceinline__ int own_place(int i) const {
    return (own_tile(i) * kBlocks + own_box()) * kBlockRows;
  }
  // Its page; past the walk's end that of the last key.
  __device__ __forceinline__ int own_page(const KeyWalk& walk, int i) const {
    if (!L::kPaged) return 0;
    return page_index(p, request, walk.first + min(own_place(i), walk.count - 1));
  }

  // A warp: its boxes of the tiles of a walk over all keys, as the ring has room for them. To ask for one
  // takes hundreds of cycles, between the scorers' instructions: one warp would be too slow. A warp waits
  // for its tile's stage to be free knowing that of the tile before its last it was: hence no more tiles
  // at once than stages.
  __device__ __forceinline__ void fetch_boxes(const KeyWalk& walk, Place place) const {
    int pages = own_page(walk, lane), next_pages = own_page(walk, 32 + lane);
    place = place.after(own_tile(0));
    for (int i = 0; own_tile(i) * L::kTileKeys < walk.count; ++i) {
      if (L::kPaged && i > 0 && i % 32 == 0) {
        pages = next_pages;
        next_pages = own_page(walk, i + 32 + lane);
      }
      const int page = L::kPaged ? __shfl_sync(kAllLanes, pages, i % 32) : 0;
      const int key = L::kPaged ? 0 : walk.first + own_place(i);
      mbarrier_wait(shared.empty[place.stage], place.parity ^ 1);
      // The scorers know of the walk when they have given a stage back; no list is full before.
      const bool cut = own_tile(i) >= L::kStages &&
                       __any_sync(kAllLanes, lane < L::kGroupQueries && is_full(shared, lane));
      if (lane == 0) fetch_box(place.stage, page, key, cut);
      __syncwarp();
      place = place.after(kTilesAtOnce);
    }
  }
  // One lane.
  __device__ __forceinline__ void fetch_box(int stage, int page, int key, bool cut) const {
    std::uint64_t* full = shared.full[stage];
    if (own_box() == 0) shared.cut[stage] = cut ? ~0u : 0;
    mbarrier_expect(full, kTileBytes / kBlocks, kTilesAtOnce);
#pragma unroll
    for (int half = 0; half < L::kHalves; ++half) {
      const int to = (own_box() * L::kHalves + half) * (kBlockRows * 128);
      copy_box(shared_address(shared.keys[stage] + to), maps.rows, half * 128, key, page, full);
    }
    if constexpr (L::Format::kHasScale) {
      copy_box(shared_address(shared.scales[stage] + own_box() * kBlockRows), maps.scales, key, 0,
               page, full);
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
    constexpr int kFound = (kRows + 31) / 32;  // by a lane; of 16 rows, half of the lanes' do
    const std::uint8_t* rows[kFound];
#pragma unroll
    for (int i = 0; i < kFound; ++i) {
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
      if (L::Format::kHasScale && (kRows >= 32 || lane < kRows)) {
        copy_4(shared_address(&shared.scales[stage][row]), scale);
      }
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
    if (lane == 0) mbarrier_arrive(shared.full[landed.stage]);
    landed = landed.next();
  }

  // The tiles of a sample.
  __device__ __forceinline__ void fetch_sample(const KeyWalk& walk, Place place) const {
    Place landed = place;
    for (int first = 0; first < walk.count; first += L::kTileKeys) {
      mbarrier_wait(shared.empty[place.stage], place.parity ^ 1);
      if (warp == 0 && lane == 0) shared.cut[place.stage] = 0;
      gather_rows(place.stage, walk, first);
      commit_copies();
      if (first >= kInFlight * L::kTileKeys) announce<kInFlight>(landed);
      place = place.next();
    }
    wait_for_copies<0>();
    while (landed.stage != place.stage || landed.parity != place.parity) announce<0>(landed);
  }

  // The fetchers: the tiles of a walk.
  __device__ __forceinline__ void fetch(const KeyWalk& walk, Place& place) const {
    if (walk.scattered()) {
      fetch_sample(walk, place);
    } else {
      fetch_boxes(walk, place);
    }
    place = place.after((walk.count + L::kTileKeys - 1) / L::kTileKeys);
  }
};

}  // namespace indexcache::index_topk_device
