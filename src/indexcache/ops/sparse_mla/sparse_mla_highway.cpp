#include "indexcache/kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "indexcache/ops/sparse_mla/sparse_mla_highway.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "indexcache/kernels/lane_sums-inl.h"
#include "indexcache/ops/sparse_mla/sparse_mla_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace indexcache::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using V = hn::Vec<Tag>;
constexpr std::int64_t kLanes = hn::MaxLanes(Tag());

// Register tiles. Logits: kHeadTile heads x 4 keys, lanes over the dimension. Values: up to
// kMaxHeads heads x 2 vectors of values, lanes over the values.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kHeadTile = 4, kMaxHeads = 12;
#else
constexpr int kHeadTile = 2, kMaxHeads = 6;
#endif
constexpr int kKeyTile = 4;

// `kHeads` heads, the others of the tile computed as repeats of the last and dropped.
template <int kHeads>
HWY_INLINE void logits_tile(const float* HWY_RESTRICT q, std::int64_t dim,
                            const float* const* HWY_RESTRICT rows,
                            const float* const* HWY_RESTRICT next_rows, float* logits) {
  const Tag d;
  V sum[kHeadTile * kKeyTile];
  HWY_UNROLL(16)
  for (int i = 0; i < kHeadTile * kKeyTile; ++i) sum[i] = hn::Zero(d);
  for (std::int64_t i = 0; i < dim; i += kLanes) {
    V key[kKeyTile];
    HWY_UNROLL(4)
    for (int k = 0; k < kKeyTile; ++k) key[k] = hn::LoadU(d, rows[k] + i);
    if (next_rows != nullptr) {
      HWY_UNROLL(4)
      for (int k = 0; k < kKeyTile; ++k) hwy::Prefetch(next_rows[k] + i);
    }
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h) {
      const V query = hn::LoadU(d, q + h * dim + i);
      HWY_UNROLL(4)
      for (int k = 0; k < kKeyTile; ++k) {
        sum[h * kKeyTile + k] = hn::MulAdd(query, key[k], sum[h * kKeyTile + k]);
      }
    }
  }
  HWY_ALIGN float sums[kHeadTile * kKeyTile];
  constexpr int kStep = static_cast<int>(std::min<std::int64_t>(kLanes, kHeadTile * kKeyTile));
  static_assert(kHeadTile * kKeyTile % kLanes == 0);
  HWY_UNROLL(16)
  for (int i = 0; i < kHeadTile * kKeyTile; i += kStep) {
    sum_slots<kLanes>(d, sum + i);
    hn::StoreU(sum[i], d, sums + i);
  }
  for (int h = 0; h < kHeads; ++h) {
    std::memcpy(logits + h * kSegment, sums + h * kKeyTile, kKeyTile * sizeof(float));
  }
}

void logits(const void* q, std::int64_t heads, std::int64_t dim, const void* const* rows,
            std::int64_t count, float* out) {
  const auto* queries = static_cast<const float*>(q);
  const auto* keys = reinterpret_cast<const float* const*>(rows);
  for (std::int64_t i = 0; i < count; i += kKeyTile) {
    // The rows after these are asked for while the first heads are computed.
    const float* const* next = i + kKeyTile < count ? keys + i + kKeyTile : nullptr;
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

template <int kHeads, int kVectors>
void values_tile(const float* HWY_RESTRICT weights, const float* const* HWY_RESTRICT rows,
                 std::int64_t count, std::int64_t at, float* HWY_RESTRICT values,
                 std::int64_t stride) {
  const Tag d;
  V sum[kHeads][kVectors];
  HWY_UNROLL(12)
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::Zero(d);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    V value[kVectors];
    for (int v = 0; v < kVectors; ++v) value[v] = hn::LoadU(d, rows[i] + at + v * kLanes);
    HWY_UNROLL(12)
    for (int h = 0; h < kHeads; ++h) {
      const V weight = hn::Set(d, weights[h * kSegment + i]);
      for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::MulAdd(weight, value[v], sum[h][v]);
    }
  }
  HWY_UNROLL(12)
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[h][v], d, values + h * stride + at + v * kLanes);
    }
  }
}

using ValuesTile = void (*)(const float*, const float* const*, std::int64_t, std::int64_t, float*,
                            std::int64_t);
template <int kVectors, std::size_t... kIndex>
constexpr std::array<ValuesTile, sizeof...(kIndex)> values_tiles(std::index_sequence<kIndex...>) {
  return {&values_tile<static_cast<int>(kIndex) + 1, kVectors>...};
}

void weighted_values(const float* weights, std::int64_t heads, const void* const* rows,
                     std::int64_t count, std::int64_t value_dim, float* values,
                     std::int64_t stride) {
  static constexpr auto kSingle = values_tiles<1>(std::make_index_sequence<kMaxHeads>());
  static constexpr auto kDouble = values_tiles<2>(std::make_index_sequence<kMaxHeads>());
  const auto* keys = reinterpret_cast<const float* const*>(rows);
  const std::int64_t groups = (heads + kMaxHeads - 1) / kMaxHeads;
  for (std::int64_t at = 0; at < value_dim;) {
    const int vectors = at + kLanes < value_dim ? 2 : 1;
    for (std::int64_t g = 0; g < groups; ++g) {  // heads in even groups
      const std::int64_t first = g * heads / groups, last = (g + 1) * heads / groups;
      const ValuesTile run = (vectors == 2 ? kDouble : kSingle)[last - first - 1];
      run(weights + first * kSegment, keys, count, at, values + first * stride, stride);
    }
    at += vectors * kLanes;
  }
}

SegmentSoftmax softmax_segment(float* values, std::int64_t count, float scale) {
  const Tag d;
  const auto lanes_left = [&](std::int64_t i) {
    return hn::FirstN(d, static_cast<std::size_t>(std::min(count - i, kLanes)));
  };
  const V lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  V highest = lowest;
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const V scaled = hn::Mul(hn::LoadU(d, values + i), hn::Set(d, scale));
    hn::StoreU(scaled, d, values + i);
    highest = hn::Max(highest, hn::IfThenElse(lanes_left(i), scaled, lowest));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, highest));
  // All -inf: exponentials of -inf, not of -inf + inf.
  const V shift = hn::Set(d, max == -std::numeric_limits<float>::infinity() ? 0.0f : max);
  V sum = hn::Zero(d);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const V x = hn::Sub(hn::LoadU(d, values + i), shift);
    const V exponential = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
    const V kept = hn::IfThenElseZero(lanes_left(i), exponential);
    hn::StoreU(kept, d, values + i);
    sum = hn::Add(sum, kept);
  }
  return {max, hn::GetLane(hn::SumOfLanes(d, sum))};
}

void merge_values(float* total, float total_factor, const float* part, float part_factor,
                  std::int64_t count) {
  const Tag d;
  const V a = hn::Set(d, total_factor), b = hn::Set(d, part_factor);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const V scaled = hn::Mul(hn::LoadU(d, part + i), b);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, total + i), a, scaled), d, total + i);
  }
}

void widen_bf16(const std::uint16_t* in, std::int64_t count, float* out) {
  const hn::ScalableTag<std::uint32_t> d;
  const hn::Rebind<std::uint16_t, decltype(d)> half;
  auto* bits = reinterpret_cast<std::uint32_t*>(out);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(half, in + i))), d, bits + i);
  }
  for (; i < count; ++i) {
    const std::uint32_t wide = std::uint32_t{in[i]} << 16;
    std::memcpy(out + i, &wide, sizeof(float));
  }
}

}  // namespace
}  // namespace indexcache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <bit>

namespace indexcache {
namespace {

HWY_EXPORT(logits);
HWY_EXPORT(weighted_values);
HWY_EXPORT(softmax_segment);
HWY_EXPORT(merge_values);
HWY_EXPORT(widen_bf16);

std::uint16_t round_to_bf16(float value) {
  if (std::isnan(value)) return 0x7FC0;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace

AttentionKernel highway_attention_kernel() {
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  // 16: the lanes of the widest target; a row that suits it suits the others.
  return {.row_multiple = 16,
          .row_dtype = SparseMlaDType::kFloat32,
          .logits = HWY_DYNAMIC_DISPATCH(logits),
          .weighted_values = HWY_DYNAMIC_DISPATCH(weighted_values)};
}

SegmentSoftmax softmax_segment(float* values, std::int64_t count, float scale) {
  return HWY_DYNAMIC_DISPATCH(softmax_segment)(values, count, scale);
}

void merge_values(float* total, float total_factor, const float* part, float part_factor,
                  std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(merge_values)(total, total_factor, part, part_factor, count);
}

void widen_bf16(const std::uint16_t* in, std::int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_bf16)(in, count, out);
}

void store_quotients(const float* values, float divisor, std::int64_t count, SparseMlaDType dtype,
                     void* out) {
  if (dtype == SparseMlaDType::kFloat32) {
    std::transform(values, values + count, static_cast<float*>(out),
                   [&](float value) { return value / divisor; });
  } else {
    std::transform(values, values + count, static_cast<std::uint16_t*>(out),
                   [&](float value) { return round_to_bf16(value / divisor); });
  }
}

}  // namespace indexcache
#endif
