// The definition of the scores for the formats of the fused kernels: scalar loops in double.
#include <array>
#include <bit>
#include <cmath>

#include "indexcache/kernels/e4m3.h"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache {
namespace {

constexpr int kDim = 128;

std::array<double, 256> e4m3_values() {
  std::array<double, 256> values;
  for (int bits = 0; bits < 256; ++bits) values[bits] = e4m3_value(static_cast<std::uint8_t>(bits));
  return values;
}

double element(const IndexTopkCudaParams& p, const void* row, int d) {
  static const std::array<double, 256> e4m3 = e4m3_values();
  if (p.format == IndexKeyFormat::kE4M3) return e4m3[static_cast<const std::uint8_t*>(row)[d]];
  const std::uint32_t bits = static_cast<const std::uint16_t*>(row)[d];
  return std::bit_cast<float>(bits << 16);
}

}  // namespace

IndexScoreRef index_score_ref(const IndexTopkCudaParams& p, std::int64_t query, std::int64_t key) {
  const std::int64_t row_bytes = p.format == IndexKeyFormat::kE4M3 ? kDim : 2 * kDim;
  const auto* key_row = static_cast<const std::uint8_t*>(p.keys) + key * p.key_stride;
  IndexScoreRef sum;
  for (std::int64_t h = 0; h < p.num_heads; ++h) {
    const std::int64_t head = query * p.num_heads + h;
    const auto* q_row = static_cast<const std::uint8_t*>(p.q) + head * row_bytes;
    double dot = 0, magnitude = 0;
    for (int d = 0; d < kDim; ++d) {
      const double product = element(p, q_row, d) * element(p, key_row, d);
      dot += product;
      magnitude += std::abs(product);
    }
    const double relu = dot < 0 ? 0 : dot;  // NaN stays NaN
    sum.score += p.weights[head] * relu;
    sum.magnitude += std::abs(p.weights[head]) * magnitude;
  }
  const double scale = p.key_scale == nullptr ? 1 : p.key_scale[key];
  return {sum.score * scale, sum.magnitude * scale};
}

}  // namespace indexcache
