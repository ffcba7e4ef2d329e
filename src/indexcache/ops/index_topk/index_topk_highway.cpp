#include "indexcache/kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "indexcache/ops/index_topk/index_topk_highway.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "indexcache/kernels/lane_sums-inl.h"
#include "indexcache/ops/index_topk/index_topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace indexcache::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Register tile: kRows keys x 2 vectors of heads, one accumulator each, beside 2 vectors of q and a
// broadcast element of a key: 27 of the 32 registers of AVX-512 and NEON, 15 of AVX2's 16.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr std::int64_t kRows = 12;
#else
constexpr std::int64_t kRows = 6;
#endif
static_assert(kScoreGroup % kRows == 0);
constexpr std::int64_t kLineFloats = 16;

// Vectors of 16 lanes would be half empty with 8 heads or fewer.
using WideTag = hn::ScalableTag<float>;
using NarrowTag = hn::CappedTag<float, 8>;
bool narrow(std::int64_t heads) { return heads <= 8; }

// A packed query: per pair of head vectors (a last odd vector stands alone) q transposed,
// [D][width] with width = the lanes of that pair, then the weights [V * lanes] with zeros beyond H.
template <class Tag>
struct PackedShape {
  std::int64_t lanes, vectors, dim;
  PackedShape(Tag d, std::int64_t heads, std::int64_t head_dim)
      : lanes(static_cast<std::int64_t>(hn::Lanes(d))),
        vectors((heads + lanes - 1) / lanes),
        dim(head_dim) {}
  std::int64_t weights_at() const { return vectors * lanes * dim; }
  std::int64_t floats() const { return weights_at() + vectors * lanes; }
};

template <class Tag>
void pack_query_as(Tag d, const float* q, const float* weights, std::int64_t heads,
                   std::int64_t dim, float* packed) {
  const PackedShape shape(d, heads, dim);
  std::memset(packed, 0, static_cast<std::size_t>(shape.floats()) * sizeof(float));
  for (std::int64_t first = 0; first < heads; first += 2 * shape.lanes) {
    const std::int64_t width =
        std::min<std::int64_t>(2, shape.vectors - first / shape.lanes) * shape.lanes;
    float* panel = packed + first * dim;
    for (std::int64_t h = first; h < std::min(heads, first + width); ++h) {
      for (std::int64_t i = 0; i < dim; ++i) panel[i * width + h - first] = q[h * dim + i];
    }
  }
  std::copy_n(weights, heads, packed + shape.weights_at());
}

// partial[r] (+)= the lanes' share of the scores of kRows keys: sum over this panel's vectors of
// w * relu(q . key).
template <class Tag, int kVectors>
HWY_INLINE void score_rows(Tag d, const float* HWY_RESTRICT panel, std::int64_t dim,
                           const float* HWY_RESTRICT keys, std::int64_t key_stride,
                           const float* HWY_RESTRICT weights, const hn::Mask<Tag>* valid,
                           bool first_panel, float* HWY_RESTRICT partial) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<Tag> sum[kRows][kVectors];
  HWY_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  // Four base pointers, the rows between them by scaled index: few address registers.
  constexpr int kBases = (kRows + 2) / 3;
  const float* base[kBases];
  for (int b = 0; b < kBases; ++b) base[b] = keys + 3 * b * key_stride;
  for (std::int64_t i = 0; i < dim; ++i) {
    if (i % kLineFloats == 0) {  // the next tile's rows, a cache line each
      for (int r = 0; r < kRows; ++r) hwy::Prefetch(keys + (kRows + r) * key_stride + i);
    }
    hn::Vec<Tag> q[kVectors];
    for (int v = 0; v < kVectors; ++v) q[v] = hn::Load(d, panel + (i * kVectors + v) * lanes);
    HWY_UNROLL(12)
    for (int r = 0; r < kRows; ++r) {
      const auto key = hn::Set(d, base[r / 3][(r % 3) * key_stride + i]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(q[v], key, sum[r][v]);
    }
  }
  HWY_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    auto total = first_panel ? hn::Zero(d) : hn::Load(d, partial + r * lanes);
    for (int v = 0; v < kVectors; ++v) {
      // A NaN is not below 0 and stays. Lanes beyond H are cleared: there 0 * inf would be NaN.
      const auto relu =
          hn::IfThenElseZero(hn::AndNot(hn::Lt(sum[r][v], hn::Zero(d)), valid[v]), sum[r][v]);
      total = hn::MulAdd(hn::Load(d, weights + v * lanes), relu, total);
    }
    hn::Store(total, d, partial + r * lanes);
  }
}

template <class Tag>
void score_keys_as(Tag d, const float* packed, std::int64_t heads, std::int64_t dim,
                   const float* keys, std::int64_t key_stride, std::int64_t count, float* scratch,
                   float* scores) {
  constexpr std::int64_t kLanes = hn::MaxLanes(Tag());
  static_assert(kScoreGroup % kLanes == 0);
  const PackedShape shape(d, heads, dim);
  HWY_ALIGN float partial[kScoreGroup * kLanes];
  for (std::int64_t group = 0; group < count; group += kScoreGroup) {
    const std::int64_t rows = std::min(kScoreGroup, count - group);
    for (std::int64_t row = 0; row < rows; row += kRows) {
      const float* tile = keys + (group + row) * key_stride;
      std::int64_t stride = key_stride;
      if (rows - row < kRows) {  // the last keys: repeat one instead of reading past the end
        for (std::int64_t r = 0; r < kRows; ++r) {
          std::copy_n(tile + std::min(r, rows - row - 1) * key_stride, dim, scratch + r * dim);
        }
        tile = scratch;
        stride = dim;
      }
      for (std::int64_t v = 0; v < shape.vectors; v += 2) {
        const hn::Mask<Tag> valid[2] = {
            hn::FirstN(d, static_cast<std::size_t>(std::min(kLanes, heads - v * kLanes))),
            hn::FirstN(d, static_cast<std::size_t>(
                              std::clamp<std::int64_t>(heads - (v + 1) * kLanes, 0, kLanes)))};
        const auto run = v + 1 < shape.vectors ? &score_rows<Tag, 2> : &score_rows<Tag, 1>;
        run(d, packed + v * kLanes * dim, dim, tile, stride,
            packed + shape.weights_at() + v * kLanes, valid, v == 0, partial + row * kLanes);
      }
    }
    for (std::int64_t row = 0; row < rows; row += kLanes) {
      hn::Vec<Tag> v[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) v[i] = hn::Load(d, partial + (row + i) * kLanes);
      hn::StoreU(sum_lanes<Tag, kLanes>(d, v), d, scores + group + row);
    }
  }
}

// ---- the functions of the table

std::int64_t packed_bytes(std::int64_t heads, std::int64_t dim) {
  const std::int64_t floats = narrow(heads) ? PackedShape(NarrowTag(), heads, dim).floats()
                                            : PackedShape(WideTag(), heads, dim).floats();
  return floats * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t scratch_bytes(std::int64_t dim) {
  return kRows * dim * static_cast<std::int64_t>(sizeof(float));
}

void pack_query(const void* q, const float* weights, std::int64_t heads, std::int64_t dim,
                void* packed) {
  const auto* values = static_cast<const float*>(q);
  auto* out = static_cast<float*>(packed);
  if (narrow(heads)) return pack_query_as(NarrowTag(), values, weights, heads, dim, out);
  pack_query_as(WideTag(), values, weights, heads, dim, out);
}

void score_keys(const void* packed, std::int64_t heads, std::int64_t dim, const void* keys,
                std::int64_t key_stride, std::int64_t count, void* scratch, float* scores) {
  const auto* query = static_cast<const float*>(packed);
  const auto* rows = static_cast<const float*>(keys);
  auto* spare = static_cast<float*>(scratch);
  if (narrow(heads)) {
    return score_keys_as(NarrowTag(), query, heads, dim, rows, key_stride, count, spare, scores);
  }
  score_keys_as(WideTag(), query, heads, dim, rows, key_stride, count, spare, scores);
}

void widen_row(const std::uint16_t* in, std::int64_t count, float* out) {
  const hn::ScalableTag<std::uint32_t> d;
  const hn::Rebind<std::uint16_t, decltype(d)> half;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto* bits = reinterpret_cast<std::uint32_t*>(out);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(half, in + i))), d, bits + i);
  }
  for (; i < count; ++i) {
    const std::uint32_t wide = std::uint32_t{in[i]} << 16;
    std::memcpy(out + i, &wide, sizeof(float));
  }
}

void widen_keys(const void* keys, std::int64_t key_stride, std::int64_t count, std::int64_t dim,
                float* out) {
  const auto* rows = static_cast<const std::uint16_t*>(keys);
  for (std::int64_t s = 0; s < count; ++s) widen_row(rows + s * key_stride, dim, out + s * dim);
}

}  // namespace
}  // namespace indexcache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <vector>

namespace indexcache {
namespace {

HWY_EXPORT(packed_bytes);
HWY_EXPORT(scratch_bytes);
HWY_EXPORT(pack_query);
HWY_EXPORT(score_keys);
HWY_EXPORT(widen_keys);

// A bf16 query is widened, then packed as fp32.
void pack_bf16_query(const void* q, const float* weights, std::int64_t heads, std::int64_t dim,
                     void* packed) {
  std::vector<float> wide(static_cast<std::size_t>(heads * dim));
  HWY_DYNAMIC_DISPATCH(widen_keys)(q, dim, heads, dim, wide.data());
  HWY_DYNAMIC_DISPATCH(pack_query)(wide.data(), weights, heads, dim, packed);
}

}  // namespace

ScoreKernel highway_score_kernel(IndexDType dtype) {
  const bool bf16 = dtype == IndexDType::kBFloat16;
  // The table's first entry only chooses the target; ask for the functions after that.
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return {.packed_bytes = HWY_DYNAMIC_DISPATCH(packed_bytes),
          .scratch_bytes = HWY_DYNAMIC_DISPATCH(scratch_bytes),
          .pack_query = bf16 ? &pack_bf16_query : HWY_DYNAMIC_DISPATCH(pack_query),
          .score_keys = HWY_DYNAMIC_DISPATCH(score_keys),
          .widen_keys = bf16 ? HWY_DYNAMIC_DISPATCH(widen_keys) : nullptr};
}

}  // namespace indexcache
#endif
