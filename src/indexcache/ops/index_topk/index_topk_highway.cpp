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

using Tag = hn::ScalableTag<float>;
using V = hn::Vec<Tag>;
constexpr std::int64_t kLanes = hn::MaxLanes(Tag());
static_assert(kScoreGroup % kLanes == 0);

// How heads lie in lanes. Up to kLanes heads: a query has a slot of `slot` lanes in one of two
// vectors. More: one query, ceil(H / kLanes) vectors.
struct Lanes {
  std::int64_t slot, per_pass, vectors;

  Lanes(std::int64_t queries, std::int64_t heads) {
    slot = std::min<std::int64_t>(4, kLanes);
    while (slot < std::min(heads, kLanes)) slot *= 2;
    per_pass = heads <= kLanes ? 2 * kLanes / slot : 1;
    vectors =
        heads <= kLanes ? (queries * slot + kLanes - 1) / kLanes : (heads + kLanes - 1) / kLanes;
  }
};

// Packed queries: per pair of vectors (a last odd one stands alone) q transposed, [D][width] with
// width = the lanes of that pair; then the weights [vectors * kLanes]; then 1 for every lane that
// holds a head, 0 elsewhere. Other lanes hold zeros.
std::int64_t packed_floats(const Lanes& lanes, std::int64_t dim) {
  return lanes.vectors * kLanes * (dim + 2);
}

void pack_queries(const void* q, const float* weights, std::int64_t queries, std::int64_t heads,
                  std::int64_t dim, void* packed) {
  const Lanes lanes(queries, heads);
  const auto* values = static_cast<const float*>(q);
  auto* out = static_cast<float*>(packed);
  std::memset(packed, 0, static_cast<std::size_t>(packed_floats(lanes, dim)) * sizeof(float));
  float* packed_weights = out + lanes.vectors * kLanes * dim;
  float* valid = packed_weights + lanes.vectors * kLanes;
  for (std::int64_t head = 0; head < queries * heads; ++head) {
    const std::int64_t lane = head / heads * lanes.slot + head % heads;
    const std::int64_t pair = lane / (2 * kLanes);
    const std::int64_t width = std::min<std::int64_t>(2, lanes.vectors - 2 * pair) * kLanes;
    float* column = out + pair * 2 * kLanes * dim + lane % (2 * kLanes);
    for (std::int64_t i = 0; i < dim; ++i) column[i * width] = values[head * dim + i];
    packed_weights[lane] = weights[head];
    valid[lane] = 1;
  }
}

// A pair of vectors (or one) against kRows keys: partial[r] receives, per vector if the vectors hold
// queries of their own, else added up over vectors and calls, the lanes' w * relu(q . key).
enum class Vectors { kOwnQueries, kOneQuery, kOneQueryContinued };

template <int kVectors>
HWY_INLINE void score_rows(const float* HWY_RESTRICT panel, std::int64_t dim,
                           const float* HWY_RESTRICT keys, std::int64_t key_stride,
                           const float* HWY_RESTRICT weights, const float* HWY_RESTRICT valid,
                           Vectors meaning, float* HWY_RESTRICT partial) {
  const Tag d;
  V sum[kRows][kVectors];
  HWY_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  // A base pointer for three rows, the others by scaled index: few address registers.
  const float* base[(kRows + 2) / 3];
  for (int b = 0; b < (kRows + 2) / 3; ++b) base[b] = keys + 3 * b * key_stride;
  for (std::int64_t i = 0; i < dim; ++i) {
    if (i % kLineFloats == 0) {  // the next tile's rows, a cache line each
      for (int r = 0; r < kRows; ++r) hwy::Prefetch(keys + (kRows + r) * key_stride + i);
    }
    V q[kVectors];
    for (int v = 0; v < kVectors; ++v) q[v] = hn::Load(d, panel + (i * kVectors + v) * kLanes);
    HWY_UNROLL(12)
    for (int r = 0; r < kRows; ++r) {
      const V key = hn::Set(d, base[r / 3][(r % 3) * key_stride + i]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(q[v], key, sum[r][v]);
    }
  }
  HWY_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    V total =
        meaning == Vectors::kOneQueryContinued ? hn::Load(d, partial + r * kLanes) : hn::Zero(d);
    for (int v = 0; v < kVectors; ++v) {
      // A NaN is not below 0 and stays. Lanes without a head are cleared: there 0 * inf would be NaN.
      const auto head = hn::Ne(hn::Load(d, valid + v * kLanes), hn::Zero(d));
      const V relu =
          hn::IfThenElseZero(hn::AndNot(hn::Lt(sum[r][v], hn::Zero(d)), head), sum[r][v]);
      total = hn::MulAdd(hn::Load(d, weights + v * kLanes), relu, total);
      if (meaning == Vectors::kOwnQueries) {
        hn::Store(total, d, partial + (v * kScoreGroup + r) * kLanes);
        total = hn::Zero(d);
      }
    }
    if (meaning != Vectors::kOwnQueries) hn::Store(total, d, partial + r * kLanes);
  }
}

// All packed vectors against kRows keys.
void score_tile(const ScoreRun& run, const Lanes& lanes, const float* tile, std::int64_t stride,
                float* partial) {
  const auto* panels = static_cast<const float*>(run.packed);
  const float* weights = panels + lanes.vectors * kLanes * run.dim;
  const float* valid = weights + lanes.vectors * kLanes;
  for (std::int64_t v = 0; v < lanes.vectors; v += 2) {
    const Vectors meaning = run.heads <= kLanes ? Vectors::kOwnQueries
                            : v == 0            ? Vectors::kOneQuery
                                                : Vectors::kOneQueryContinued;
    const auto rows = v + 1 < lanes.vectors ? &score_rows<2> : &score_rows<1>;
    rows(panels + v * kLanes * run.dim, run.dim, tile, stride, weights + v * kLanes,
         valid + v * kLanes, meaning, partial);
  }
}

// Sums the slots of every vector of partial [vectors][kScoreGroup][kLanes] for the first `rows` keys.
template <int kSlot>
void sum_partials(const float* partial, std::int64_t queries, std::int64_t rows, float* scores,
                  std::int64_t score_stride) {
  const Tag d;
  constexpr std::int64_t kSlots = kLanes / kSlot;
  for (std::int64_t first = 0; first < queries; first += kSlots) {
    const float* vectors = partial + first / kSlots * kScoreGroup * kLanes;
    for (std::int64_t row = 0; row < rows; row += kLanes) {
      V v[kLanes];
      HWY_UNROLL(16)
      for (std::int64_t i = 0; i < kLanes; ++i) v[i] = hn::Load(d, vectors + (row + i) * kLanes);
      sum_slots<kSlot>(d, v);
      for (std::int64_t j = 0; j < std::min(kSlots, queries - first); ++j) {
        hn::StoreU(v[j], d, scores + (first + j) * score_stride + row);
      }
    }
  }
}

void score_keys(const ScoreRun& run) {
  const Lanes lanes(run.queries, run.heads);
  const auto* keys = static_cast<const float*>(run.keys);
  auto* scratch = static_cast<float*>(run.scratch);
  HWY_ALIGN float partial[2 * kScoreGroup * kLanes];
  for (std::int64_t group = 0; group < run.count; group += kScoreGroup) {
    const std::int64_t rows = std::min(kScoreGroup, run.count - group);
    for (std::int64_t row = 0; row < rows; row += kRows) {
      const float* tile = keys + (group + row) * run.key_stride;
      std::int64_t stride = run.key_stride;
      if (rows - row < kRows) {  // the last keys: repeat one instead of reading past the end
        for (std::int64_t r = 0; r < kRows; ++r) {
          std::copy_n(tile + std::min(r, rows - row - 1) * stride, run.dim, scratch + r * run.dim);
        }
        tile = scratch;
        stride = run.dim;
      }
      score_tile(run, lanes, tile, stride, partial + row * kLanes);
    }
    float* scores = run.scores + group;
    if (lanes.slot == kLanes) {
      sum_partials<kLanes>(partial, run.queries, rows, scores, run.score_stride);
    } else if (lanes.slot == 4) {
      sum_partials<std::min<int>(4, kLanes)>(partial, run.queries, rows, scores, run.score_stride);
    } else {
      sum_partials<std::min<int>(8, kLanes)>(partial, run.queries, rows, scores, run.score_stride);
    }
  }
}

// ---- the sizes of the table

std::int64_t queries_per_pass(std::int64_t heads) { return Lanes(1, heads).per_pass; }

std::int64_t packed_bytes(std::int64_t heads, std::int64_t dim) {
  return packed_floats(Lanes(queries_per_pass(heads), heads), dim) *
         static_cast<std::int64_t>(sizeof(float));
}

std::int64_t scratch_bytes(std::int64_t dim) {
  return kRows * dim * static_cast<std::int64_t>(sizeof(float));
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

HWY_EXPORT(queries_per_pass);
HWY_EXPORT(packed_bytes);
HWY_EXPORT(scratch_bytes);
HWY_EXPORT(pack_queries);
HWY_EXPORT(score_keys);
HWY_EXPORT(widen_keys);

// bf16 queries are widened, then packed as fp32.
void pack_bf16_queries(const void* q, const float* weights, std::int64_t queries,
                       std::int64_t heads, std::int64_t dim, void* packed) {
  std::vector<float> wide(static_cast<std::size_t>(queries * heads * dim));
  HWY_DYNAMIC_DISPATCH(widen_keys)(q, dim, queries * heads, dim, wide.data());
  HWY_DYNAMIC_DISPATCH(pack_queries)(wide.data(), weights, queries, heads, dim, packed);
}

}  // namespace

ScoreKernel highway_score_kernel(IndexDType dtype) {
  const bool bf16 = dtype == IndexDType::kBFloat16;
  // The table's first entry only chooses the target; ask for the functions after that.
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return {.queries_per_pass = HWY_DYNAMIC_DISPATCH(queries_per_pass),
          .packed_bytes = HWY_DYNAMIC_DISPATCH(packed_bytes),
          .scratch_bytes = HWY_DYNAMIC_DISPATCH(scratch_bytes),
          .pack_queries = bf16 ? &pack_bf16_queries : HWY_DYNAMIC_DISPATCH(pack_queries),
          .score_keys = HWY_DYNAMIC_DISPATCH(score_keys),
          .widen_keys = bf16 ? HWY_DYNAMIC_DISPATCH(widen_keys) : nullptr};
}

}  // namespace indexcache
#endif
