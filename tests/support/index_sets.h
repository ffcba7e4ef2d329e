// Index sets for the tests of index_union: rows ascending without duplicates, then -1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

namespace indexcache::testing {

// [rows, k]: of `ids` ids, sizes from 0 to k, each row `shared` (0 to 1) drawn from the row before.
inline std::vector<std::int32_t> random_sets(std::int64_t rows, std::int64_t k, std::int64_t ids,
                                             double shared, std::mt19937& random) {
  std::vector<std::int32_t> sets(rows * k, -1);
  std::vector<std::int32_t> before;
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::size_t size =
        t % 5 == 3 ? 0 : std::min<std::size_t>(k - random() % (k / 4 + 1), ids);
    std::set<std::int32_t> row;
    for (const std::int32_t id : before) {
      if (row.size() < size && static_cast<double>(random() % 1000) < 1000 * shared) row.insert(id);
    }
    while (row.size() < size) row.insert(static_cast<std::int32_t>(random() % ids));
    std::copy(row.begin(), row.end(), &sets[t * k]);
    before.assign(row.begin(), row.end());
  }
  return sets;
}

}  // namespace indexcache::testing
