// Which neighbouring queries form a group (kernels/union_entry.h): those whose absolute positions p of one request have the
// same p / kGroupQueries. So a group never crosses requests, and where a context is cut into chunks at multiples of
// kGroupQueries, every query has the same group in every way of cutting.
#pragma once

#include <cstdint>
#include <vector>

namespace indexcache {

// The rows of one request in a batch of queries: `count` rows, the first at position `first_position` of its context.
struct QuerySpan {
  std::int64_t first_position = 0;
  std::int64_t count = 0;
};

struct QueryGroups {
  // Group g holds the rows [begin[g], begin[g + 1]) of the batch; one element more than there are groups.
  std::vector<std::int32_t> begin = {0};
  std::vector<std::int32_t> request;  // of each group: the index of its span
};

// The spans' rows follow one another in the batch. Empty spans have no group.
QueryGroups query_groups(const std::vector<QuerySpan>& spans);

}  // namespace indexcache
