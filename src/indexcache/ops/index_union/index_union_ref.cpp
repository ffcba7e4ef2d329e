#include <algorithm>
#include <set>

#include "indexcache/ops/index_union/index_union_params.h"

namespace indexcache {

void index_union_ref(const IndexUnionParams& p) {
  for (std::int64_t g = 0; g < p.num_groups; ++g) {
    const auto* begin = p.indices + p.group_begin[g] * p.top_k;
    const auto* end = p.indices + p.group_begin[g + 1] * p.top_k;
    std::set<std::int32_t> ids(begin, end);
    std::int32_t* out = p.entries + g * p.entry_stride;
    for (const std::int32_t id : ids) {
      if (id < 0) continue;
      std::uint32_t mask = 0;
      for (const auto* row = begin; row < end; row += p.top_k) {
        if (std::find(row, row + p.top_k, id) != row + p.top_k) {
          mask |= 1u << (row - begin) / p.top_k;
        }
      }
      *out++ = static_cast<std::int32_t>(static_cast<std::uint32_t>(id) | mask << kUnionIdBits);
    }
    p.counts[g] = static_cast<std::int32_t>(out - (p.entries + g * p.entry_stride));
  }
}

}  // namespace indexcache
