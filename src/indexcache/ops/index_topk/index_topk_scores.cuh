// Scores of a group of queries on the tensor cores: the queries in shared memory, the keys through a
// ring of each warp's own, a thread's heads summed in its registers.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/ranked_select.cuh"
#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ float relu(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

template <class L>
struct GroupScores {
  using Format = typename L::Format;
  static constexpr int kQueries = L::kQueries, kColumns = L::kColumns, kBanks = L::kBanks;
  static constexpr int kOwn = L::kOwn, kSums = L::kSums, kWeights = L::kWeights;
  static constexpr int kRow = L::kRow, kSteps = L::kSteps, kHalves = L::kHalves;
  static constexpr int kBankBytes = L::kBankBytes, kStages = L::kStages;

  const IndexTopkCudaParams& p;
  Item item;
  std::uint8_t* shared;  // the queries, then the warps' rings

  // Queries into shared memory as the product's B. A thread reads a key in units of 16 bytes and feeds
  // each unit's 4 words to the product as it finds them, which permutes K: word w of unit c + 4 i
  // stands where a lane c of the fragment has its bytes of half w % 2 of step 2 i + w / 2. The
  // queries are permuted alike.
  __device__ void stage_queries() const {
    constexpr int kUnits = kRow / 16;
    for (int i = threadIdx.x; i < kBanks * kColumns * kUnits; i += kThreads) {
      const int unit = i % kUnits, column = i / kUnits % kColumns, bank = i / kUnits / kColumns;
      const int query = L::column_query(column % 8 / 2, column % 2);
      const int head = L::column_head(bank, column / 8, column % 8 / 2, column % 2);
      uint4 words = {0, 0, 0, 0};
      if (query < item.queries && head < p.num_heads) {
        const std::int64_t row = std::int64_t{item.first_query + query} * p.num_heads + head;
        words = static_cast<const uint4*>(p.q)[row * kUnits + unit];
      }
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int place = 32 * (2 * (unit / 4) + w / 2) + 16 * (w % 2) + 4 * (unit % 4);
        std::uint8_t* tile = shared + (bank * kHalves + place / 128) * kBankBytes + column * 128;
        const int swizzled = ((place % 128 / 16) ^ (column % 8)) * 16 + place % 16;
        *reinterpret_cast<std::uint32_t*>(tile + swizzled) = word[w];
      }
    }
    fence_shared_for_wgmma();
  }

  __device__ __forceinline__ std::uint8_t* stage(int tile) const {
    return shared + L::kQueryBytes + (threadIdx.x / 32 * kStages + tile % kStages) * L::kStageBytes;
  }

  __device__ __forceinline__ const std::uint8_t* page_of(int key) const {
    const int request = p.tokens_per_request > 0 ? item.group : 0;
    const std::int64_t page =
        p.block_table[std::int64_t{request} * p.table_stride + key / kPageKeys];
    return static_cast<const std::uint8_t*>(p.keys) + page * p.page_stride;
  }
  __device__ __forceinline__ const std::uint8_t* key_row(int key) const {
    if (L::kPaged) return page_of(key) + key % kPageKeys * kRow;
    return static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
  }
  __device__ __forceinline__ const void* scale_of(int key) const {
    if (L::kPaged) return page_of(key) + kPageScales + key % kPageKeys * 4;
    return p.key_scale + key;
  }
  __device__ __forceinline__ bool has_scales() const { return L::kPaged || p.key_scale != nullptr; }

  // Copies this warp's 16 keys of a tile to its ring. Unit u of an odd row lies at u ^ 4, so that
  // reading fragments meets no bank twice. key(row) is the key of a row.
  template <class Key>
  __device__ __forceinline__ void copy_keys(int tile, const Key& key) const {
    constexpr int kLanesPerRow = kRow / 16, kRowsPerCopy = 32 / kLanesPerRow;
    const int lane = threadIdx.x % 32, unit = lane % kLanesPerRow;
    const std::uint32_t to = shared_address(stage(tile));
#pragma unroll
    for (int i = 0; i < kWarpKeys / kRowsPerCopy; ++i) {
      const int row = i * kRowsPerCopy + lane / kLanesPerRow;
      copy_16(to + row * kRow + (unit ^ (row & 1) << 2) * 16, key_row(key(row)) + unit * 16, true);
    }
    if (has_scales() && lane < kWarpKeys) {
      copy_4(to + kWarpKeys * kRow + lane * 4, scale_of(key(lane)));
    }
  }

  // Starts fetching this warp's keys of a tile. Past the walk's end the last key stands in.
  __device__ __forceinline__ void fetch(const KeyWalk& walk, int tile) const {
    const int first = tile * kTileKeys + threadIdx.x / 32 * kWarpKeys;
    if (walk.stratum == 0 && first + kWarpKeys <= walk.count) {
      copy_keys(tile, [&](int row) { return walk.first + first + row; });
    } else if (tile * kTileKeys < walk.count) {
      copy_keys(tile, [&](int row) { return walk.key(min(first + row, walk.count - 1)); });
    }
    commit_copies();
  }

  __device__ __forceinline__ void load_weights(float (&weights)[kWeights]) const {
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const int query = L::column_query(c, i % 2);
      const int head = L::column_head(0, i / 2, c, i % 2);  // banks follow each other
      weights[i] = query < item.queries && head < p.num_heads
                       ? p.weights[std::int64_t{item.first_query + query} * p.num_heads + head]
                       : 0.0f;
    }
  }

  __device__ __forceinline__ void load_fragments(int tile, std::uint32_t (&a)[kSteps][4]) const {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const std::uint8_t* from = stage(tile);
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int unit = (c + 4 * i) ^ (g & 1) << 2;
        const uint4 words = *reinterpret_cast<const uint4*>(from + (g + 8 * r) * kRow + unit * 16);
        a[2 * i][r] = words.x;
        a[2 * i][2 + r] = words.y;
        a[2 * i + 1][r] = words.z;
        a[2 * i + 1][2 + r] = words.w;
      }
    }
  }

  // Adds a bank's heads to sums[row of the two][own query][].
  __device__ __forceinline__ void reduce(int bank, const float (&d)[kColumns / 2],
                                         const float (&weights)[kWeights],
                                         float (&sums)[2][kOwn][kSums]) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int own = kQueries == 8 ? e : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x = d[4 * j + 2 * r + e];
          if (Format::kHasInfinity && L::column_head(bank, j, threadIdx.x % 4, e) >= p.num_heads) {
            x = 0;  // 0 * inf is no 0
          }
          float& sum = sums[r][own][L::sum_of(j)];
          sum = fmaf(relu(x), weights[bank * (kColumns / 4) + 2 * j + e], sum);
        }
      }
    }
  }

  // A tile's products, with bank after bank reduced while the next is computed.
  __device__ __forceinline__ void score_tile(std::uint64_t queries,
                                             const std::uint32_t (&a)[kSteps][4],
                                             const float (&weights)[kWeights],
                                             float (&sums)[2][kOwn][kSums]) const {
    float d[kBanks][kColumns / 2];
    wgmma_fence();
#pragma unroll
    for (int bank = 0; bank < kBanks; ++bank) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int offset = (bank * kHalves + step / 4) * kBankBytes + step % 4 * 32;
        Format::multiply(d[bank], a[step], queries + offset / 16, step > 0);
      }
      wgmma_commit();
    }
#pragma unroll
    for (int bank = 0; bank < kBanks; ++bank) {
      if (bank + 1 < kBanks) {
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      wgmma_pin(d[bank]);
      reduce(bank, d[bank], weights, sums);
    }
  }

  // The four sums together, whose threads are those of a quad with the same query.
  static __device__ __forceinline__ float total(const float (&s)[kSums]) {
    if constexpr (kSums == 4) {
      return (s[0] + s[1]) + (s[2] + s[3]);
    } else if constexpr (kSums == 2) {
      return (s[0] + __shfl_xor_sync(kAllLanes, s[0], 2)) +
             (s[1] + __shfl_xor_sync(kAllLanes, s[1], 2));
    } else {
      const float pair = s[0] + __shfl_xor_sync(kAllLanes, s[0], 1);
      return pair + __shfl_xor_sync(kAllLanes, pair, 2);
    }
  }
  // Which thread of those offers a row's score.
  static __device__ __forceinline__ bool offers(int r) {
    const int c = threadIdx.x % 4;
    return kQueries >= 4 || (kQueries == 2 ? c / 2 == r : c == r);
  }
};

}  // namespace indexcache::index_topk_device
