#include <algorithm>

#include "indexcache/ops/index_overlap/index_overlap_params.h"

namespace indexcache {

void index_overlap_ref(const IndexOverlapParams& p) {
  for (std::int64_t t = 0; t < p.num_queries; ++t) {
    const auto* b = p.b + t * p.k_b;
    std::int32_t count = 0;
    for (std::int64_t i = 0; i < p.k_a; ++i) {
      const auto entry = p.a[t * p.k_a + i];
      if (entry >= 0 && std::find(b, b + p.k_b, entry) != b + p.k_b) ++count;
    }
    p.out[t] = count;
  }
}

}  // namespace indexcache
