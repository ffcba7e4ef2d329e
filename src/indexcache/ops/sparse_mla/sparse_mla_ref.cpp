#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {
namespace {

double element(const void* data, SparseMlaDType dtype, std::int64_t i) {
  if (dtype == SparseMlaDType::kFloat32) return static_cast<const float*>(data)[i];
  const std::uint32_t bits = static_cast<const std::uint16_t*>(data)[i];
  return std::bit_cast<float>(bits << 16);
}

}  // namespace

void sparse_mla_ref(const SparseMlaParams& p, double* out, double* lse) {
  for (std::int64_t row = 0; row < p.num_queries * p.num_heads; ++row) {
    const std::int32_t* indices = p.indices + row / p.num_heads * p.top_k;
    std::vector<std::int64_t> keys;
    for (std::int64_t i = 0; i < p.top_k; ++i) {
      if (indices[i] >= 0) keys.push_back(indices[i]);
    }
    std::vector<double> logits;
    for (const std::int64_t s : keys) {
      double dot = 0;
      for (std::int64_t d = 0; d < p.dim; ++d) {
        dot += element(p.q, p.dtype, row * p.dim + d) * element(p.kv, p.dtype, s * p.kv_stride + d);
      }
      logits.push_back(p.softmax_scale * dot);
    }

    double* out_row = out + row * p.value_dim;
    std::fill(out_row, out_row + p.value_dim, 0.0);
    lse[row] = -std::numeric_limits<double>::infinity();
    if (keys.empty()) continue;
    double max = *std::max_element(logits.begin(), logits.end());
    if (max == -std::numeric_limits<double>::infinity()) max = 0;  // lse -inf, out NaN
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit - max);
    lse[row] = max + std::log(sum);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const double probability = std::exp(logits[i] - max) / sum;
      for (std::int64_t d = 0; d < p.value_dim; ++d) {
        out_row[d] += probability * element(p.kv, p.dtype, keys[i] * p.kv_stride + d);
      }
    }
  }
}

}  // namespace indexcache
