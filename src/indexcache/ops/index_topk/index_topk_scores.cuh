// Scores of a group of queries on the tensor cores: the queries in shared memory beside a ring of
// tiles of keys, a thread's heads summed in its registers.
#pragma once

#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

// relu, which keeps NaN.
__device__ __forceinline__ float relu(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

template <class L>
struct GroupScores {
  using Format = typename L::Format;
  static constexpr int kQueries = L::kQueries, kColumns = L::kColumns;
  static constexpr int kOwn = L::kOwn, kSums = L::kSums, kWeights = L::kWeights, kHeld = L::kHeld;
  static constexpr int kRow = L::kRow, kSteps = L::kSteps, kHalves = L::kHalves;

  using Accumulators = float[kColumns / 2];
  using Sums = float[2][kOwn][kSums];  // of row g and g + 8 of a block

  const IndexTopkCudaParams& p;
  GroupShared<L>& shared;

  // The scorers: asks for the queries as the products' B in shared memory. There once wait_for_operands()
  // returns, and to all scorers when they have met.
  __device__ void stage_queries(const Item& item) const {
    constexpr int kUnits = kRow / 16;
    for (int i = threadIdx.x; i < L::kParts * kColumns * kUnits; i += kScorers) {
      const int unit = i % kUnits, column = i / kUnits % kColumns, part = i / kUnits / kColumns;
      const int query = part * kQueries + L::column_query(column % 8 / 2, column % 2);
      const int head = L::column_head(column / 8, column % 8 / 2, column % 2);
      const bool present = query < item.queries && head < p.num_heads;
      const std::int64_t row = std::int64_t{item.first_query + query} * p.num_heads + head;
      const std::uint8_t* tile = shared.queries + part * L::kPartBytes + unit / 8 * L::kBankBytes;
      copy_16(shared_address(tile) + swizzled_offset(column, unit % 8),
              static_cast<const uint4*>(p.q) + (present ? row * kUnits + unit : 0), present);
    }
  }
  __device__ __forceinline__ void wait_for_operands() const {
    wait_for_copies();
    fence_for_wgmma();
  }

  // The query in the group of this thread's columns 2 c + e.
  static __device__ __forceinline__ int own_query(int e) {
    return L::part() * kQueries + L::column_query(threadIdx.x % 4, e);
  }

  // The same for the weights of all threads.
  __device__ __forceinline__ void stage_weights(const Item& item) const {
    for (int i = threadIdx.x; i < L::kParts * 4 * kWeights; i += kScorers) {
      const int column = i % kWeights, c = i / kWeights % 4, part = i / kWeights / 4;
      const int query = part * kQueries + L::column_query(c, column % 2);
      const int head = L::column_head(column / 2, c, column % 2);
      const bool present = query < item.queries && head < p.num_heads;
      const std::int64_t at = std::int64_t{item.first_query + query} * p.num_heads + head;
      copy_4(shared_address(&shared.weights[part][c][column]), p.weights + (present ? at : 0),
             present);
    }
  }
  __device__ __forceinline__ const float4* own_weights() const {
    return reinterpret_cast<const float4*>(shared.weights[L::part()][threadIdx.x % 4]);
  }
  __device__ __forceinline__ void load_weights(float4 (&held)[kHeld / 4]) const {
#pragma unroll
    for (int i = 0; i < kHeld / 4; ++i) held[i] = own_weights()[i];
  }

  // Whether this thread's row, where it has one, is the block's row g + 8, not g.
  static __device__ __forceinline__ bool has_second_row() {
    const int c = threadIdx.x % 4;
    return L::kRows == 1 && (kQueries == 2 ? c / 2 : c % 2) != 0;
  }
  // This thread's first row of the tile: g of the warpgroup's block, or g + 8.
  static __device__ __forceinline__ int first_row() {
    const int warp = threadIdx.x % kWarpgroup / 32;
    return L::block() * kBlockRows + 16 * warp + threadIdx.x % 32 / 4 + 8 * has_second_row();
  }

  // The lower halves of the operands' descriptors, alike in all lanes: of the queries; of this
  // warpgroup's rows in the first stage. The upper half is that of any operand.
  static __device__ __forceinline__ std::uint32_t low_half(const void* rows) {
    const auto low = static_cast<std::uint32_t>(rows_operand(shared_address(rows)));
    return __shfl_sync(kAllLanes, low, 0);
  }
  __device__ __forceinline__ std::uint32_t queries_operand() const {
    return low_half(shared.queries + L::part() * L::kPartBytes);
  }
  __device__ __forceinline__ std::uint32_t keys_operand() const {
    return low_half(shared.keys[0] + L::block() * L::kBlockBytes);
  }

  // Starts the products.
  static __device__ __forceinline__ void multiply(std::uint32_t keys, std::uint32_t queries,
                                                  Accumulators& d) {
    constexpr std::uint64_t kHigh = rows_operand(0) >> 32 << 32;
    asm volatile("" : "+r"(queries));  // sums of it are to be found anew, not kept in registers
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int half = step / 4, within = step % 4 * 32;
      const std::uint32_t a = keys + (half * kBlockRows * 128 + within) / 16;
      const std::uint32_t b = queries + (half * L::kBankBytes + within) / 16;
      Format::multiply(d, kHigh | a, kHigh | b, step > 0);
    }
    wgmma_commit();
  }

  // The sums over heads.
  __device__ __forceinline__ void reduce(const Accumulators& d, const float4 (&held)[kHeld / 4],
                                         Sums& sums) const {
#pragma unroll
    for (int i = 0; i < kWeights / 4; ++i) {  // four columns of the thread, of two times eight
      const float4 four = i < kHeld / 4 ? held[i < kHeld / 4 ? i : 0] : own_weights()[i];
      const float weights[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int column = 0; column < 4; ++column) {
        const int j = 2 * i + column / 2, e = column % 2, own = kQueries == 8 ? e : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x = d[4 * j + 2 * r + e];
          if (Format::kHasInfinity && L::column_head(j, threadIdx.x % 4, e) >= p.num_heads) {
            x = 0;  // 0 * inf is no 0
          }
          float& sum = sums[r][own][L::sum_of(j)];
          sum = fmaf(relu(x), weights[column], sum);
        }
      }
    }
  }

  // The four sums together. Where several threads of a quad have the same query, each has some of the
  // heads' for both rows: they swap, so that each has one row.
  static __device__ __forceinline__ void join(const Sums& s, float (&scores)[L::kRows][kOwn]) {
    if constexpr (L::kRows == 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          const auto& four = s[r][own];
          scores[r][own] = (four[0] + four[1]) + (four[2] + four[3]);
        }
      }
    } else {
      const bool second = has_second_row();
      float both[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const float others = second ? s[0][0][i] : s[1][0][i];
        both[i] = (second ? s[1][0][i] : s[0][0][i]) +
                  __shfl_xor_sync(kAllLanes, others, kQueries == 2 ? 2 : 1);
      }
      scores[0][0] =
          kSums == 2 ? both[0] + both[kSums - 1] : both[0] + __shfl_xor_sync(kAllLanes, both[0], 2);
    }
  }
  // Of threads with the same row and query, one offers the score.
  static __device__ __forceinline__ bool offers() { return kQueries > 1 || threadIdx.x % 4 < 2; }
};

}  // namespace indexcache::index_topk_device
