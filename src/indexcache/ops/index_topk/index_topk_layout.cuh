// How index_topk's Hopper kernel lays a group of queries out over the columns of matrix products, and
// which keys it walks.
#pragma once

#include "indexcache/kernels/wgmma_registers.cuh"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache::index_topk_device {

using namespace device;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kWarpKeys = 16;  // a warp's share of a tile
constexpr int kTileKeys = kWarps * kWarpKeys;
constexpr int kTilesPerLook = kKeysPerLook / kTileKeys;
constexpr int kSampleShare = 64;  // one key of so many is sampled
constexpr int kMostSampled = 6144, kMostSampledByPiece = 1024;
constexpr int kPageKeys = 64, kPageScales = kPageKeys * 128;
static_assert(kMostSampled <= kCandidateCapacity);

struct E4m3 {
  static constexpr int kRowBytes = 128, kStages = 4;
  static constexpr bool kHasInfinity = false;
  template <int n>
  static __device__ __forceinline__ void multiply(float (&d)[n], const std::uint32_t (&a)[4],
                                                  std::uint64_t b, bool accumulate) {
    wgmma_e4m3(d, a, b, accumulate);
  }
};

struct Bf16 {
  static constexpr int kRowBytes = 256, kStages = 4;
  static constexpr bool kHasInfinity = true;
  template <int n>
  static __device__ __forceinline__ void multiply(float (&d)[n], const std::uint32_t (&a)[4],
                                                  std::uint64_t b, bool accumulate) {
    wgmma_bf16(d, a, b, accumulate);
  }
};

// Which keys a scan visits: all of [first, first + count), or a sample of them, one from each of
// `count` equal strata at a place drawn by a hash.
struct KeyWalk {
  int first = 0, count = 0;
  unsigned stratum = 0;         // 0: all keys
  unsigned long long step = 0;  // 32.32 fixed point
  __device__ __forceinline__ int key(int i) const {
    if (stratum == 0) return first + i;
    unsigned hash = static_cast<unsigned>(i) * 0x9E3779B1u;
    hash = (hash ^ hash >> 15) * 0x85EBCA77u;
    hash ^= hash >> 13;
    return first + static_cast<int>(i * step >> 32) + static_cast<int>(__umulhi(hash, stratum));
  }
};

__device__ __forceinline__ KeyWalk sampled_keys(KeyWalk keys, int most) {
  const int range = keys.count, count = min(range / kSampleShare, most);
  return {keys.first, count, static_cast<unsigned>(range / count),
          (static_cast<unsigned long long>(range) << 32) / static_cast<unsigned>(count)};
}

// What an item is: a group of queries and, where the plan has pieces, one of them.
struct Item {
  int group, piece;
  int first_query, queries;
};

// kQueries queries (8, 4, 2 or 1), their heads in kBanks banks of kColumns columns. Of eight columns,
// those of thread c of a quad, 2 c and 2 c + 1, are
//   8 queries  two queries, one head      4 queries  one query, two heads
//   2 queries  one query, two of four heads; a sum over heads is of two threads
//   1 query    two of eight heads; of four threads
template <class KeyFormat, int queries, int columns, int banks, bool paged>
struct Layout {
  using Format = KeyFormat;
  static constexpr int kQueries = queries, kColumns = columns, kBanks = banks;
  static constexpr bool kPaged = paged;
  static constexpr int kHeadsPerBank = kColumns / kQueries;
  static constexpr int kOwn = kQueries == 8 ? 2 : 1;         // queries of a thread
  static constexpr int kSums = kQueries < 4 ? kQueries : 4;  // of the four sums, a thread's
  static constexpr int kBankBytes = kColumns * 128;          // for 128 bytes of K
  static constexpr int kWeights = kBanks * kColumns / 4;     // of a thread
  static constexpr int kRow = Format::kRowBytes, kSteps = kRow / 32, kHalves = kRow / 128;
  static constexpr int kStages = Format::kStages;
  static constexpr int kStageBytes = kWarpKeys * kRow + kWarpKeys * 4;  // keys, then their scales
  static constexpr int kQueryBytes = kBanks * kHalves * kBankBytes;
  static constexpr int kSharedBytes = kQueryBytes + kWarps * kStages * kStageBytes;

  // Column 2 c + e of eight columns j belongs to this query and head.
  static __device__ __forceinline__ int column_query(int c, int e) {
    return kQueries == 8 ? 2 * c + e : kQueries == 4 ? c : kQueries == 2 ? c % 2 : 0;
  }
  static __device__ __forceinline__ int column_head(int bank, int j, int c, int e) {
    const int within = kQueries == 8   ? 0
                       : kQueries == 4 ? e
                       : kQueries == 2 ? c / 2 * 2 + e
                                       : 2 * c + e;
    return bank * kHeadsPerBank + j * (8 / kQueries) + within;
  }
  // Which of the thread's sums the heads of eight columns j go to: sum (head / 2) % 4 of the four.
  static __device__ __forceinline__ int sum_of(int j) {
    return kQueries == 8 ? j / 2 % 4 : j % kSums;
  }
};

}  // namespace indexcache::index_topk_device
