// index_topk's scores by vdpbf16ps, which Highway 1.0 does not know: the shape of
// index_topk_highway.cpp, a lane holding a pair of neighbouring elements of one head.
#include "indexcache/kernels/simd_targets.h"
// after simd_targets.h
#include <hwy/highway.h>

#include "indexcache/kernels/cpu_features.h"
#include "indexcache/ops/index_topk/index_topk_kernels.h"

#if HWY_ARCH_X86 && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

HWY_PUSH_ATTRIBUTES("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")

namespace indexcache {
namespace {

constexpr std::int64_t kRows = 12;  // keys of a register tile: 24 accumulators, 2 of q, 1 broadcast
constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kLinePairs = 16;  // of a cache line
static_assert(kScoreGroup % kRows == 0 && kScoreGroup % kLanes == 0);

// A packed query: per pair of head vectors (a last odd one stands alone) [pairs of d][width] pairs
// of bf16, then the weights in fp32, zeros beyond H and D.
struct PackedShape {
  std::int64_t vectors, pairs;
  PackedShape(std::int64_t heads, std::int64_t dim)
      : vectors((heads + kLanes - 1) / kLanes), pairs((dim + 1) / 2) {}
  std::int64_t weights_at() const { return vectors * kLanes * pairs; }  // in 32-bit words
  std::int64_t words() const { return weights_at() + vectors * kLanes; }
};

std::int64_t packed_bytes(std::int64_t heads, std::int64_t dim) {
  return PackedShape(heads, dim).words() * 4;
}

std::int64_t scratch_bytes(std::int64_t dim) { return kRows * ((dim + 1) / 2) * 4; }

void pack_query(const void* q, const float* weights, std::int64_t heads, std::int64_t dim,
                void* packed) {
  const PackedShape shape(heads, dim);
  const auto* values = static_cast<const std::uint16_t*>(q);
  auto* words = static_cast<std::uint32_t*>(packed);
  std::memset(packed, 0, static_cast<std::size_t>(packed_bytes(heads, dim)));
  for (std::int64_t first = 0; first < heads; first += 2 * kLanes) {
    const std::int64_t width = std::min<std::int64_t>(2, shape.vectors - first / kLanes) * kLanes;
    std::uint32_t* panel = words + first * shape.pairs;
    for (std::int64_t h = first; h < std::min(heads, first + width); ++h) {
      for (std::int64_t i = 0; i < dim; ++i) {
        panel[i / 2 * width + h - first] |= std::uint32_t{values[h * dim + i]} << (i % 2 * 16);
      }
    }
  }
  std::memcpy(words + shape.weights_at(), weights, static_cast<std::size_t>(heads) * sizeof(float));
}

__m512i broadcast_pair(const std::uint16_t* pair) {
  std::int32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// partial[r] (+)= the lanes' share of the scores of kRows keys; keys hold 2 * pairs elements.
template <int kVectors>
void score_rows(const std::uint32_t* __restrict panel, std::int64_t pairs,
                const std::uint16_t* __restrict keys, std::int64_t key_stride,
                const float* __restrict weights, const __mmask16* valid, bool first_panel,
                float* __restrict partial) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  const std::uint16_t* base[4];
  for (int b = 0; b < 4; ++b) base[b] = keys + 3 * b * key_stride;
  for (std::int64_t i = 0; i < pairs; ++i) {
    if (i % kLinePairs == 0) {  // the next tile's rows, a cache line each
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(keys + (kRows + r) * key_stride + 2 * i);
    }
    __m512bh q[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      q[v] = reinterpret_cast<__m512bh>(_mm512_load_si512(panel + (i * kVectors + v) * kLanes));
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const auto key =
          reinterpret_cast<__m512bh>(broadcast_pair(base[r / 3] + (r % 3) * key_stride + 2 * i));
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], q[v], key);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    __m512 total = first_panel ? _mm512_setzero_ps() : _mm512_load_ps(partial + r * kLanes);
    for (int v = 0; v < kVectors; ++v) {
      // The maximum is its second argument where that is NaN. Lanes beyond H are cleared: there 0 *
      // inf would be NaN.
      const __m512 relu = _mm512_maskz_max_ps(valid[v], _mm512_setzero_ps(), sum[r][v]);
      total = _mm512_fmadd_ps(_mm512_load_ps(weights + v * kLanes), relu, total);
    }
    _mm512_store_ps(partial + r * kLanes, total);
  }
}

// Lane i = the sum over lanes of vector i, every one by the same tree.
template <int kCount>
__m512 sum_lanes(const __m512* v, __m512i even, __m512i odd) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    const __m512 low = sum_lanes<kCount / 2>(v, even, odd);
    const __m512 high = sum_lanes<kCount / 2>(v + kCount / 2, even, odd);
    return _mm512_add_ps(_mm512_permutex2var_ps(low, even, high),
                         _mm512_permutex2var_ps(low, odd, high));
  }
}

void score_keys(const void* packed, std::int64_t heads, std::int64_t dim, const void* keys,
                std::int64_t key_stride, std::int64_t count, void* scratch, float* scores) {
  const PackedShape shape(heads, dim);
  const auto* words = static_cast<const std::uint32_t*>(packed);
  const auto* weights = reinterpret_cast<const float*>(words + shape.weights_at());
  const auto* rows = static_cast<const std::uint16_t*>(keys);
  auto* spare = static_cast<std::uint16_t*>(scratch);
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  alignas(64) float partial[kScoreGroup * kLanes];
  for (std::int64_t group = 0; group < count; group += kScoreGroup) {
    const std::int64_t group_rows = std::min(kScoreGroup, count - group);
    for (std::int64_t row = 0; row < group_rows; row += kRows) {
      const std::uint16_t* tile = rows + (group + row) * key_stride;
      std::int64_t stride = key_stride;
      // The last keys (repeat one instead of reading past the end), and any of odd D (end in a
      // zero).
      if (group_rows - row < kRows || dim % 2 != 0) {
        stride = 2 * shape.pairs;
        for (std::int64_t r = 0; r < kRows; ++r) {
          spare[(r + 1) * stride - 1] = 0;
          std::copy_n(tile + std::min(r, group_rows - row - 1) * key_stride, dim,
                      spare + r * stride);
        }
        tile = spare;
      }
      for (std::int64_t v = 0; v < shape.vectors; v += 2) {
        const auto mask = [&](std::int64_t vector) {
          return static_cast<__mmask16>(
              (1u << std::clamp<std::int64_t>(heads - vector * kLanes, 0, kLanes)) - 1);
        };
        const __mmask16 valid[2] = {mask(v), mask(v + 1)};
        const auto run = v + 1 < shape.vectors ? &score_rows<2> : &score_rows<1>;
        run(words + v * kLanes * shape.pairs, shape.pairs, tile, stride, weights + v * kLanes,
            valid, v == 0, partial + row * kLanes);
      }
    }
    for (std::int64_t row = 0; row < group_rows; row += kLanes) {
      __m512 v[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) v[i] = _mm512_load_ps(partial + (row + i) * kLanes);
      _mm512_storeu_ps(scores + group + row, sum_lanes<kLanes>(v, even, odd));
    }
  }
}

}  // namespace
}  // namespace indexcache

HWY_POP_ATTRIBUTES

namespace indexcache {

ScoreKernel avx512_bf16_score_kernel() {
  if (!cpu_has_avx512_bf16()) return {};
  return {.packed_bytes = &packed_bytes,
          .scratch_bytes = &scratch_bytes,
          .pack_query = &pack_query,
          .score_keys = &score_keys,
          .widen_keys = nullptr};
}

}  // namespace indexcache

#else

namespace indexcache {

ScoreKernel avx512_bf16_score_kernel() { return {}; }

}  // namespace indexcache

#endif
