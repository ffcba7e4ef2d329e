#include <algorithm>

#include "indexcache/ops/index_overlap/index_overlap_params.h"

namespace indexcache {
namespace {

// Entries before the padding.
std::int64_t row_length(const std::int32_t* row, std::int64_t k) {
  while (k > 0 && row[k - 1] < 0) --k;
  return k;
}

// One comparison decides both steps; a mispredicted branch an entry would cost more than the rest.
std::int32_t merge_count(const std::int32_t* a, std::int64_t length_a, const std::int32_t* b,
                         std::int64_t length_b) {
  std::int64_t i = 0, j = 0;
  std::int32_t count = 0;
  while (i < length_a && j < length_b) {
    const std::int32_t x = a[i], y = b[j];
    count += static_cast<std::int32_t>(x == y);
    i += static_cast<std::int64_t>(x <= y);
    j += static_cast<std::int64_t>(y <= x);
  }
  return count;
}

}  // namespace

void index_overlap_cpu(const IndexOverlapParams& p, const Parallel& parallel) {
  const std::int64_t share = (p.num_queries + parallel.num_workers - 1) / parallel.num_workers;
  parallel.run([&](int worker) {
    const std::int64_t end = std::min(p.num_queries, (worker + 1) * share);
    for (std::int64_t t = worker * share; t < end; ++t) {
      const auto* a = p.a + t * p.k_a;
      const auto* b = p.b + t * p.k_b;
      p.out[t] = merge_count(a, row_length(a, p.k_a), b, row_length(b, p.k_b));
    }
  });
}

}  // namespace indexcache
