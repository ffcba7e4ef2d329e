// Keys of a walk on their way to shared memory: the fetching warpgroup.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

// Where keys lie in device memory.
template <class L>
struct KeySource {
  const IndexTopkCudaParams& p;
  int request;

  __device__ __forceinline__ const std::uint8_t* page_of(int key) const {
    const std::int64_t page =
        p.block_table[std::int64_t{request} * p.table_stride + key / kPageKeys];
    return static_cast<const std::uint8_t*>(p.keys) + page * p.page_stride;
  }
  __device__ __forceinline__ bool has_scales() const { return L::kPaged || p.key_scale != nullptr; }
};

// A warp of the fetchers has a quarter of a tile's rows, kRows, always of one page.
template <class L>
struct KeyFetcher {
  static constexpr int kLanesPerRow = L::kRow / 16, kRowsPerCopy = 32 / kLanesPerRow;
  static constexpr int kRows = L::kTileKeys / (kFetchers / 32);
  static constexpr int kCopies = kRows / kRowsPerCopy;
  static constexpr int kInFlight = L::kStages / 2;  // tiles whose copies are under way

  KeySource<L> source;
  GroupShared<L>& shared;
  int warp = static_cast<int>(threadIdx.x) % kFetchers / 32;
  int lane = static_cast<int>(threadIdx.x) % 32;

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

  // Rows that follow each other in memory.
  __device__ __forceinline__ void copy_rows(int stage, const std::uint8_t* first,
                                            std::int64_t stride, const float* scales) const {
    const std::uint32_t to = first_place(stage);
    const std::uint8_t* from = first + (lane / kLanesPerRow) * stride + lane % kLanesPerRow * 16;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      copy_16(place_of(to, i), from, true);
      from += kRowsPerCopy * stride;
    }
    if (!source.has_scales()) return;
#pragma unroll
    for (int i = 0; i < kRows; i += 32) {
      copy_4(shared_address(&shared.scales[stage][first_row() + i + lane]), scales + i + lane);
    }
  }

  // Any rows: those of a sample, or of a tile that reaches past the walk's end, where the last key
  // stands in. A lane finds every 32nd row, so that a warp waits once for the table of pages.
  __device__ __forceinline__ void gather_rows(int stage, const KeyWalk& walk, int first) const {
    const IndexTopkCudaParams& p = source.p;
    const std::uint8_t* rows[kRows / 32];
#pragma unroll
    for (int i = 0; i < kRows / 32; ++i) {
      const int row = first_row() + 32 * i + lane, key = walk.key(min(first + row, walk.count - 1));
      const void* scale = p.key_scale + key;
      if (L::kPaged) {
        const std::uint8_t* page = source.page_of(key);
        rows[i] = page + key % kPageKeys * L::kRow;
        scale = page + kPageScales + key % kPageKeys * 4;
      } else {
        rows[i] = static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
      }
      if (source.has_scales()) copy_4(shared_address(&shared.scales[stage][row]), scale);
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

  __device__ __forceinline__ const std::uint8_t* page_of_tile(const KeyWalk& walk,
                                                              int first) const {
    const int at = first + first_row();
    return L::kPaged && walk.stratum == 0 && at < walk.count ? source.page_of(walk.first + at)
                                                             : nullptr;
  }

  // Tells the scorers of the oldest stage, once all copies but those of the newest `pending` tiles
  // have landed. Matrix products read through another proxy than copies write, hence the fence; here
  // it delays nobody.
  template <int pending>
  __device__ __forceinline__ void announce(RingPlace<L::kStages>& landed) const {
    wait_for_copies<pending>();
    fence_for_wgmma();
    mbarrier_arrive(&shared.full[landed.stage]);
    landed = landed.next();
  }

  // Fetches the tiles of a walk as the ring has room for them.
  __device__ __forceinline__ void fetch(const KeyWalk walk, RingPlace<L::kStages>& place) const {
    const IndexTopkCudaParams& p = source.p;
    const std::uint8_t* page = page_of_tile(walk, 0);
    RingPlace<L::kStages> landed = place;
    for (int first = 0; first < walk.count; first += L::kTileKeys) {
      const std::uint8_t* next_page = page_of_tile(walk, first + L::kTileKeys);
      mbarrier_wait(&shared.empty[place.stage], place.parity ^ 1);
      if (walk.stratum != 0 || first + first_row() + kRows > walk.count) {
        gather_rows(place.stage, walk, first);
      } else {
        const int key = walk.first + first + first_row();
        if (L::kPaged) {
          const int within = key % kPageKeys;
          copy_rows(place.stage, page + within * L::kRow, L::kRow,
                    reinterpret_cast<const float*>(page + kPageScales) + within);
        } else {
          const std::uint8_t* row = static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
          if (p.key_stride == L::kRow) {  // addresses of the copies are then known offsets
            copy_rows(place.stage, row, L::kRow, p.key_scale + key);
          } else {
            copy_rows(place.stage, row, p.key_stride, p.key_scale + key);
          }
        }
      }
      commit_copies();
      if (first >= kInFlight * L::kTileKeys) announce<kInFlight>(landed);
      page = next_page;
      place = place.next();
    }
    wait_for_copies<0>();
    while (landed.stage != place.stage || landed.parity != place.parity) announce<0>(landed);
  }
};

}  // namespace indexcache::index_topk_device
