#include "indexcache/ops/index_overlap/index_overlap.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <thread>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_overlap/index_overlap_params.h"

namespace indexcache {
namespace {

// Rows of up to k distinct ascending entries below `range`, then -1.
std::vector<std::int32_t> random_sets(std::mt19937& random, int rows, int k, int range) {
  std::vector<std::int32_t> sets;
  for (int t = 0; t < rows; ++t) {
    std::set<std::int32_t> row;
    const auto length = std::min<std::size_t>(random() % (k + 1), range);
    while (row.size() < length) row.insert(static_cast<std::int32_t>(random() % range));
    sets.insert(sets.end(), row.begin(), row.end());
    sets.insert(sets.end(), k - row.size(), -1);
  }
  return sets;
}

Parallel threads(int count) {
  return {count, [count](const std::function<void(int)>& body) {
            std::vector<std::thread> workers;
            for (int worker = 0; worker < count; ++worker) workers.emplace_back(body, worker);
            for (auto& worker : workers) worker.join();
          }};
}

TEST(IndexOverlap, EqualsItsReference) {
  std::mt19937 random(1);
  for (const int rows : {0, 1, 3, 17}) {
    for (const auto& [k_a, k_b] : {std::pair(1, 1), {5, 5}, {16, 16}, {33, 7}, {0, 4}, {64, 64}}) {
      for (const int range : {1, 20, 100, 100000}) {
        const auto a = random_sets(random, rows, k_a, range);
        const auto b = random_sets(random, rows, k_b, range);
        std::vector<std::int32_t> expected(rows, -7), found(rows + 1, -7);
        IndexOverlapParams params{rows, k_a, k_b, a.data(), b.data(), expected.data()};
        index_overlap_ref(params);
        for (const int workers : {1, 3}) {
          params.out = found.data();
          index_overlap_cpu(params, threads(workers));
          EXPECT_EQ(std::vector(found.begin(), found.end() - 1), expected);
          EXPECT_EQ(found.back(), -7);
        }
      }
    }
  }
}

TEST(IndexOverlap, CountsByHand) {
  const auto a = at::tensor({0, 2, 4, -1, -1, -1, 1, 2, 3}, at::kInt).view({3, 3});
  const auto b = at::tensor({2, 3, 4, 5, -1, -1, 1, 2, 3}, at::kInt).view({3, 3});
  const auto out = index_overlap(a, b);
  EXPECT_TRUE(out.equal(at::tensor({2, 0, 3}, at::kInt)));
}

TEST(IndexOverlap, RefusesOtherShapesAndTypes) {
  const auto a = at::tensor({0, 1}, at::kInt).view({1, 2});
  EXPECT_THROW(index_overlap(a, a.to(at::kLong)), InputError);
  EXPECT_THROW(index_overlap(a, a.view({2, 1})), InputError);
  EXPECT_THROW(index_overlap(a.view({2}), a), InputError);
}

}  // namespace
}  // namespace indexcache
