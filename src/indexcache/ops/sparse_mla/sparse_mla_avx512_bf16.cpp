// sparse_mla's two products by vdpbf16ps, which Highway 1.0 does not know: the shape of
// sparse_mla_highway.cpp, a lane holding a pair: of neighbouring elements of a row for the logits,
// of neighbouring rows for the values.
#include "indexcache/kernels/simd_targets.h"
// after simd_targets.h
#include <hwy/highway.h>

#include "indexcache/kernels/cpu_features.h"
#include "indexcache/ops/sparse_mla/sparse_mla_kernels.h"

#if HWY_ARCH_X86 && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

HWY_PUSH_ATTRIBUTES("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")

namespace indexcache {
namespace {

constexpr int kHeadTile = 4, kKeyTile = 4;  // 16 accumulators: one reduction over lanes
constexpr int kMaxHeads = 12;               // x 2 vectors of values: 24 accumulators
constexpr std::int64_t kRowElements = 32;   // bf16 of a vector

__m512bh load_row(const std::uint16_t* row) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(row));
}

// Lane i = the sum over lanes of vector i, every one by the same tree.
template <int kCount>
__m512 sum_lanes(const __m512* v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512 low = sum_lanes<kCount / 2>(v);
    const __m512 high = sum_lanes<kCount / 2>(v + kCount / 2);
    return _mm512_add_ps(_mm512_permutex2var_ps(low, even, high),
                         _mm512_permutex2var_ps(low, odd, high));
  }
}

template <int kHeads>
void logits_tile(const std::uint16_t* __restrict q, std::int64_t dim,
                 const std::uint16_t* const* __restrict rows,
                 const std::uint16_t* const* __restrict next_rows, float* logits) {
  __m512 sum[kHeadTile * kKeyTile];
#pragma GCC unroll 16
  for (int i = 0; i < kHeadTile * kKeyTile; ++i) sum[i] = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < dim; i += kRowElements) {
    __m512bh key[kKeyTile];
#pragma GCC unroll 4
    for (int k = 0; k < kKeyTile; ++k) key[k] = load_row(rows[k] + i);
    if (next_rows != nullptr) {
#pragma GCC unroll 4
      for (int k = 0; k < kKeyTile; ++k) __builtin_prefetch(next_rows[k] + i);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m512bh query = load_row(q + h * dim + i);
#pragma GCC unroll 4
      for (int k = 0; k < kKeyTile; ++k) {
        sum[h * kKeyTile + k] = _mm512_dpbf16_ps(sum[h * kKeyTile + k], query, key[k]);
      }
    }
  }
  alignas(64) float sums[kHeadTile * kKeyTile];
  _mm512_store_ps(sums, sum_lanes<16>(sum));
  for (int h = 0; h < kHeads; ++h) {
    std::memcpy(logits + h * kSegment, sums + h * kKeyTile, kKeyTile * sizeof(float));
  }
}

void logits(const void* q, std::int64_t heads, std::int64_t dim, const void* const* rows,
            std::int64_t count, float* out) {
  const auto* queries = static_cast<const std::uint16_t*>(q);
  const auto* keys = reinterpret_cast<const std::uint16_t* const*>(rows);
  for (std::int64_t i = 0; i < count; i += kKeyTile) {
    // The rows after these are asked for while the first heads are computed.
    const std::uint16_t* const* next = i + kKeyTile < count ? keys + i + kKeyTile : nullptr;
    std::int64_t h = 0;
    for (; h + kHeadTile <= heads; h += kHeadTile) {
      logits_tile<kHeadTile>(queries + h * dim, dim, keys + i, h == 0 ? next : nullptr,
                             out + h * kSegment + i);
    }
    for (; h < heads; ++h) {
      logits_tile<1>(queries + h * dim, dim, keys + i, h == 0 ? next : nullptr,
                     out + h * kSegment + i);
    }
  }
}

// 32 values of kHeads heads. weights: pairs of bf16, kSegment / 2 words a head.
template <int kHeads>
void values_tile(const std::uint32_t* __restrict weights,
                 const std::uint16_t* const* __restrict rows, std::int64_t count, std::int64_t at,
                 float* __restrict values, std::int64_t stride) {
  __m512 low[kHeads], high[kHeads];
#pragma GCC unroll 12
  for (int h = 0; h < kHeads; ++h) low[h] = high[h] = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < count; i += 2) {
    const __m512i first = _mm512_loadu_si512(rows[i] + at);
    const __m512i second = _mm512_loadu_si512(rows[i + 1] + at);
    // Within each 128-bit block: pairs of its first and of its last four values.
    const auto pairs_low = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(first, second));
    const auto pairs_high = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(first, second));
#pragma GCC unroll 12
    for (int h = 0; h < kHeads; ++h) {
      const auto weight = reinterpret_cast<__m512bh>(
          _mm512_set1_epi32(static_cast<int>(weights[h * (kSegment / 2) + i / 2])));
      low[h] = _mm512_dpbf16_ps(low[h], weight, pairs_low);
      high[h] = _mm512_dpbf16_ps(high[h], weight, pairs_high);
    }
  }
  const __m512i front = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i back =
      _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
#pragma GCC unroll 12
  for (int h = 0; h < kHeads; ++h) {
    float* out = values + h * stride + at;
    _mm512_storeu_ps(out, _mm512_permutex2var_ps(low[h], front, high[h]));
    _mm512_storeu_ps(out + 16, _mm512_permutex2var_ps(low[h], back, high[h]));
  }
}

using ValuesTile = void (*)(const std::uint32_t*, const std::uint16_t* const*, std::int64_t,
                            std::int64_t, float*, std::int64_t);
template <std::size_t... kIndex>
constexpr std::array<ValuesTile, sizeof...(kIndex)> values_tiles(std::index_sequence<kIndex...>) {
  return {&values_tile<static_cast<int>(kIndex) + 1>...};
}

void weighted_values(const float* weights, std::int64_t heads, const void* const* rows,
                     std::int64_t count, std::int64_t value_dim, float* values,
                     std::int64_t stride) {
  static constexpr auto kTiles = values_tiles(std::make_index_sequence<kMaxHeads>());
  const auto* keys = reinterpret_cast<const std::uint16_t* const*>(rows);
  const std::int64_t groups = (heads + kMaxHeads - 1) / kMaxHeads;
  for (std::int64_t g = 0; g < groups; ++g) {  // heads in even groups
    const std::int64_t first = g * heads / groups, last = (g + 1) * heads / groups;
    alignas(64) std::uint32_t rounded[kMaxHeads * kSegment / 2];
    for (std::int64_t h = first; h < last; ++h) {
      for (std::int64_t i = 0; i < count; i += 16) {
        const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(weights + h * kSegment + i));
        _mm256_store_si256(reinterpret_cast<__m256i*>(rounded + ((h - first) * kSegment + i) / 2),
                           reinterpret_cast<__m256i>(half));
      }
    }
    for (std::int64_t at = 0; at < value_dim; at += kRowElements) {
      kTiles[last - first - 1](rounded, keys, count, at, values + first * stride, stride);
    }
  }
}

}  // namespace
}  // namespace indexcache

HWY_POP_ATTRIBUTES

namespace indexcache {

AttentionKernel avx512_bf16_attention_kernel() {
  if (!cpu_has_avx512_bf16()) return {};
  return {.row_multiple = kRowElements,
          .row_dtype = SparseMlaDType::kBFloat16,
          .logits = &logits,
          .weighted_values = &weighted_values};
}

}  // namespace indexcache

#else

namespace indexcache {

AttentionKernel avx512_bf16_attention_kernel() { return {}; }

}  // namespace indexcache

#endif
