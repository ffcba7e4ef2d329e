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

// How heads lie in lanes: as in index_topk_highway.cpp.
struct Lanes {
  std::int64_t slot, per_pass, vectors;

  Lanes(std::int64_t queries, std::int64_t heads)
      : slot(heads <= 4   ? 4
             : heads <= 8 ? 8
                          : kLanes),
        per_pass(heads <= kLanes ? 2 * kLanes / slot : 1),
        vectors(heads <= kLanes ? (queries * slot + kLanes - 1) / kLanes
                                : (heads + kLanes - 1) / kLanes) {}
};

// Packed queries, in 32-bit words: per pair of vectors (a last odd one stands alone) [pairs of
// d][width] pairs of bf16; then the weights and the lanes that hold a head, in fp32. Zeros elsewhere.
std::int64_t packed_words(const Lanes& lanes, std::int64_t dim) {
  return lanes.vectors * kLanes * ((dim + 1) / 2 + 2);
}

std::int64_t queries_per_pass(std::int64_t heads) { return Lanes(1, heads).per_pass; }

std::int64_t packed_bytes(std::int64_t heads, std::int64_t dim) {
  return packed_words(Lanes(queries_per_pass(heads), heads), dim) * 4;
}

std::int64_t scratch_bytes(std::int64_t dim) { return kRows * ((dim + 1) / 2) * 4; }

void pack_queries(const void* q, const float* weights, std::int64_t queries, std::int64_t heads,
                  std::int64_t dim, void* packed) {
  const Lanes lanes(queries, heads);
  const std::int64_t pairs = (dim + 1) / 2;
  const auto* values = static_cast<const std::uint16_t*>(q);
  auto* words = static_cast<std::uint32_t*>(packed);
  std::memset(packed, 0, static_cast<std::size_t>(packed_words(lanes, dim)) * 4);
  auto* packed_weights = reinterpret_cast<float*>(words + lanes.vectors * kLanes * pairs);
  float* valid = packed_weights + lanes.vectors * kLanes;
  for (std::int64_t head = 0; head < queries * heads; ++head) {
    const std::int64_t lane = head / heads * lanes.slot + head % heads;
    const std::int64_t panel = lane / (2 * kLanes);
    const std::int64_t width = std::min<std::int64_t>(2, lanes.vectors - 2 * panel) * kLanes;
    std::uint32_t* column = words + panel * 2 * kLanes * pairs + lane % (2 * kLanes);
    for (std::int64_t i = 0; i < dim; ++i) {
      column[i / 2 * width] |= std::uint32_t{values[head * dim + i]} << (i % 2 * 16);
    }
    packed_weights[lane] = weights[head];
    valid[lane] = 1;
  }
}

__m512i broadcast_pair(const std::uint16_t* pair) {
  std::int32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// As in index_topk_highway.cpp; keys hold 2 * pairs elements.
enum class Vectors { kOwnQueries, kOneQuery, kOneQueryContinued };

template <int kVectors>
void score_rows(const std::uint32_t* __restrict panel, std::int64_t pairs,
                const std::uint16_t* __restrict keys, std::int64_t key_stride,
                const float* __restrict weights, const float* __restrict valid, Vectors meaning,
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
    __m512 total = meaning == Vectors::kOneQueryContinued ? _mm512_load_ps(partial + r * kLanes)
                                                          : _mm512_setzero_ps();
    for (int v = 0; v < kVectors; ++v) {
      // The maximum is its second argument where that is NaN. Lanes without a head are cleared: there
      // 0 * inf would be NaN.
      const __mmask16 head =
          _mm512_cmp_ps_mask(_mm512_load_ps(valid + v * kLanes), _mm512_setzero_ps(), _CMP_NEQ_OQ);
      const __m512 relu = _mm512_maskz_max_ps(head, _mm512_setzero_ps(), sum[r][v]);
      total = _mm512_fmadd_ps(_mm512_load_ps(weights + v * kLanes), relu, total);
      if (meaning == Vectors::kOwnQueries) {
        _mm512_store_ps(partial + (v * kScoreGroup + r) * kLanes, total);
        total = _mm512_setzero_ps();
      }
    }
    if (meaning != Vectors::kOwnQueries) _mm512_store_ps(partial + r * kLanes, total);
  }
}

void score_tile(const ScoreRun& run, const Lanes& lanes, const std::uint16_t* tile,
                std::int64_t stride, float* partial) {
  const std::int64_t pairs = (run.dim + 1) / 2;
  const auto* panels = static_cast<const std::uint32_t*>(run.packed);
  const auto* weights = reinterpret_cast<const float*>(panels + lanes.vectors * kLanes * pairs);
  const float* valid = weights + lanes.vectors * kLanes;
  for (std::int64_t v = 0; v < lanes.vectors; v += 2) {
    const Vectors meaning = run.heads <= kLanes ? Vectors::kOwnQueries
                            : v == 0            ? Vectors::kOneQuery
                                                : Vectors::kOneQueryContinued;
    const auto rows = v + 1 < lanes.vectors ? &score_rows<2> : &score_rows<1>;
    rows(panels + v * kLanes * pairs, pairs, tile, stride, weights + v * kLanes, valid + v * kLanes,
         meaning, partial);
  }
}

__m512 even_lanes(__m512 low, __m512 high) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_ps(low, even, high);
}
__m512 odd_lanes(__m512 low, __m512 high) {
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_ps(low, odd, high);
}

// Lane i of v[j] becomes the sum over slot j of v[i]: kernels/lane_sums-inl.h.
template <int kSlot>
void sum_slots(__m512* v) {
  constexpr int kSlots = kLanes / kSlot;
#pragma GCC unroll 4
  for (int left = kLanes / 2; left >= kSlots; left /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < left; ++i) {
      v[i] = _mm512_add_ps(even_lanes(v[2 * i], v[2 * i + 1]), odd_lanes(v[2 * i], v[2 * i + 1]));
    }
  }
  if constexpr (kSlots == 2) {
    const __m512 even = even_lanes(v[0], v[1]), odd = odd_lanes(v[0], v[1]);
    v[0] = even;
    v[1] = odd;
  } else if constexpr (kSlots == 4) {
    const __m512 even0 = even_lanes(v[0], v[1]), odd0 = odd_lanes(v[0], v[1]);
    const __m512 even1 = even_lanes(v[2], v[3]), odd1 = odd_lanes(v[2], v[3]);
    v[0] = even_lanes(even0, even1);
    v[1] = even_lanes(odd0, odd1);
    v[2] = odd_lanes(even0, even1);
    v[3] = odd_lanes(odd0, odd1);
  }
}

template <int kSlot>
void sum_partials(const float* partial, std::int64_t queries, std::int64_t rows, float* scores,
                  std::int64_t score_stride) {
  constexpr std::int64_t kSlots = kLanes / kSlot;
  for (std::int64_t first = 0; first < queries; first += kSlots) {
    const float* vectors = partial + first / kSlots * kScoreGroup * kLanes;
    for (std::int64_t row = 0; row < rows; row += kLanes) {
      __m512 v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = _mm512_load_ps(vectors + (row + i) * kLanes);
      sum_slots<kSlot>(v);
      for (std::int64_t j = 0; j < std::min(kSlots, queries - first); ++j) {
        _mm512_storeu_ps(scores + (first + j) * score_stride + row, v[j]);
      }
    }
  }
}

void score_keys(const ScoreRun& run) {
  const Lanes lanes(run.queries, run.heads);
  const auto* keys = static_cast<const std::uint16_t*>(run.keys);
  auto* scratch = static_cast<std::uint16_t*>(run.scratch);
  alignas(64) float partial[2 * kScoreGroup * kLanes];
  for (std::int64_t group = 0; group < run.count; group += kScoreGroup) {
    const std::int64_t rows = std::min(kScoreGroup, run.count - group);
    for (std::int64_t row = 0; row < rows; row += kRows) {
      const std::uint16_t* tile = keys + (group + row) * run.key_stride;
      std::int64_t stride = run.key_stride;
      // The last keys (repeat one instead of reading past the end), and any of odd D (end in a zero).
      if (rows - row < kRows || run.dim % 2 != 0) {
        stride = (run.dim + 1) / 2 * 2;
        for (std::int64_t r = 0; r < kRows; ++r) {
          scratch[(r + 1) * stride - 1] = 0;
          std::copy_n(tile + std::min(r, rows - row - 1) * run.key_stride, run.dim,
                      scratch + r * stride);
        }
        tile = scratch;
      }
      score_tile(run, lanes, tile, stride, partial + row * kLanes);
    }
    float* scores = run.scores + group;
    const auto sum = lanes.slot == 4   ? &sum_partials<4>
                     : lanes.slot == 8 ? &sum_partials<8>
                                       : &sum_partials<16>;
    sum(partial, run.queries, rows, scores, run.score_stride);
  }
}

}  // namespace
}  // namespace indexcache

HWY_POP_ATTRIBUTES

namespace indexcache {

ScoreKernel avx512_bf16_score_kernel() {
  if (!cpu_has_avx512_bf16()) return {};
  return {.queries_per_pass = &queries_per_pass,
          .packed_bytes = &packed_bytes,
          .scratch_bytes = &scratch_bytes,
          .pack_queries = &pack_queries,
          .score_keys = &score_keys,
          .widen_keys = nullptr};
}

}  // namespace indexcache

#else

namespace indexcache {

ScoreKernel avx512_bf16_score_kernel() { return {}; }

}  // namespace indexcache

#endif
