#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "indexcache/ops/index_topk/index_topk_params.h"

namespace indexcache {
namespace {

double element(const void* data, IndexDType dtype, std::int64_t i) {
  if (dtype == IndexDType::kFloat32) return static_cast<const float*>(data)[i];
  const std::uint32_t bits = static_cast<const std::uint16_t*>(data)[i];
  return std::bit_cast<float>(bits << 16);
}

double score(const IndexTopkParams& p, std::int64_t query, std::int64_t key) {
  double sum = 0;
  for (std::int64_t h = 0; h < p.num_heads; ++h) {
    double dot = 0;
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      dot += element(p.q, p.dtype, (query * p.num_heads + h) * p.head_dim + d) *
             element(p.keys, p.dtype, key * p.key_stride + d);
    }
    const double relu = dot < 0 ? 0 : dot;  // NaN stays NaN
    sum += p.weights[query * p.num_heads + h] * relu;
  }
  return sum;
}

}  // namespace

void index_scores_ref(const IndexTopkParams& p, double* scores) {
  std::fill(scores, scores + p.num_queries * p.num_keys, -std::numeric_limits<double>::infinity());
  for (std::int64_t t = 0; t < p.num_queries; ++t) {
    for (std::int64_t s = p.start[t]; s < p.end[t]; ++s)
      scores[t * p.num_keys + s] = score(p, t, s);
  }
}

void index_topk_ref(const IndexTopkParams& p) {
  for (std::int64_t t = 0; t < p.num_queries; ++t) {
    const std::int64_t range = std::max(0, p.end[t] - p.start[t]);
    std::vector<double> scores(range);
    for (std::int64_t s = 0; s < range; ++s) scores[s] = score(p, t, p.start[t] + s);

    std::vector<std::int32_t> order(range);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      if (std::isnan(scores[b])) return !std::isnan(scores[a]);
      return scores[a] > scores[b];
    });
    const std::int64_t kept = std::min(range, p.top_k);
    std::sort(order.begin(), order.begin() + kept);
    std::int32_t* out = p.out + t * p.top_k;
    std::fill(std::copy(order.begin(), order.begin() + kept, out), out + p.top_k, -1);
  }
}

}  // namespace indexcache
