#include "indexcache/kernels/query_groups.h"

#include <algorithm>

#include "indexcache/kernels/union_entry.h"

namespace indexcache {

QueryGroups query_groups(const std::vector<QuerySpan>& spans) {
  QueryGroups groups;
  std::int64_t row = 0;
  for (std::size_t request = 0; request < spans.size(); ++request) {
    std::int64_t position = spans[request].first_position;
    const std::int64_t end = position + spans[request].count;
    while (position < end) {
      const std::int64_t next =
          std::min(end, (position / kGroupQueries + 1) * std::int64_t{kGroupQueries});
      row += next - position;
      position = next;
      groups.begin.push_back(static_cast<std::int32_t>(row));
      groups.request.push_back(static_cast<std::int32_t>(request));
    }
  }
  return groups;
}

}  // namespace indexcache
