#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "indexcache/ops/index_topk/index_topk_params.h"

namespace indexcache {
namespace {

std::vector<float> to_float(const void* data, IndexDType dtype, std::int64_t count) {
  std::vector<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) {
    values[i] =
        dtype == IndexDType::kFloat32
            ? static_cast<const float*>(data)[i]
            : std::bit_cast<float>(std::uint32_t{static_cast<const std::uint16_t*>(data)[i]} << 16);
  }
  return values;
}

void score_query(const IndexTopkParams& p, const std::vector<float>& q,
                 const std::vector<float>& keys, std::int64_t t, float* scores) {
  for (std::int64_t s = p.start[t]; s < p.end[t]; ++s) {
    float sum = 0;
    for (std::int64_t h = 0; h < p.num_heads; ++h) {
      float dot[16] = {};
      const float* a = &q[(t * p.num_heads + h) * p.head_dim];
      const float* b = &keys[s * p.key_stride];
      for (std::int64_t d = 0; d < p.head_dim; ++d) dot[d % 16] += a[d] * b[d];
      float total = 0;
      for (const float part : dot) total += part;
      sum += p.weights[t * p.num_heads + h] * (total < 0 ? 0 : total);
    }
    scores[s] = sum;
  }
}

std::int64_t key_elements(const IndexTopkParams& p) {
  return p.num_keys == 0 ? 0 : (p.num_keys - 1) * p.key_stride + p.head_dim;
}

}  // namespace

void index_scores_cpu(const IndexTopkParams& p, float* scores) {
  const auto q = to_float(p.q, p.dtype, p.num_queries * p.num_heads * p.head_dim);
  const auto keys = to_float(p.keys, p.dtype, key_elements(p));
  std::fill(scores, scores + p.num_queries * p.num_keys, -std::numeric_limits<float>::infinity());
  for (std::int64_t t = 0; t < p.num_queries; ++t)
    score_query(p, q, keys, t, scores + t * p.num_keys);
}

void index_topk_cpu(const IndexTopkParams& p, const Parallel& parallel) {
  const auto q = to_float(p.q, p.dtype, p.num_queries * p.num_heads * p.head_dim);
  const auto keys = to_float(p.keys, p.dtype, key_elements(p));
  std::atomic<std::int64_t> next{0};
  parallel.run([&](int) {
    std::vector<float> scores(p.num_keys);
    for (std::int64_t t; (t = next.fetch_add(1)) < p.num_queries;) {
      score_query(p, q, keys, t, scores.data());
      const std::int64_t range = std::max(0, p.end[t] - p.start[t]);
      std::vector<std::int32_t> order(range);
      std::iota(order.begin(), order.end(), 0);
      const float* row = scores.data() + p.start[t];
      const std::int64_t kept = std::min(range, p.top_k);
      std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                        [&](std::int32_t a, std::int32_t b) {
                          const bool nan_a = std::isnan(row[a]), nan_b = std::isnan(row[b]);
                          if (nan_a != nan_b) return nan_b;
                          if (!nan_a && row[a] != row[b]) return row[a] > row[b];
                          return a < b;
                        });
      std::sort(order.begin(), order.begin() + kept);
      std::int32_t* out = p.out + t * p.top_k;
      std::fill(std::copy(order.begin(), order.begin() + kept, out), out + p.top_k, -1);
    }
  });
}

}  // namespace indexcache
