// index_union's reference by hand, its CPU merge against the reference, and the tensor face.
#include "indexcache/ops/index_union/index_union.h"

#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "indexcache/base/error.h"
#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "support/index_sets.h"
#include "support/op_inputs.h"

namespace indexcache {
namespace {

using testing::Guarded;
using testing::threads;

enum class Which { kReference, kCpu };

std::vector<std::vector<std::uint32_t>> unite(Which which, const std::vector<std::int32_t>& sets,
                                              std::int64_t k, const QueryGroups& groups,
                                              int workers = 1) {
  const auto num_groups = static_cast<std::int64_t>(groups.request.size());
  Guarded<std::int32_t> entries(num_groups * kGroupQueries * k), counts(num_groups);
  const IndexUnionParams params = {.num_groups = num_groups,
                                   .group_begin = groups.begin.data(),
                                   .top_k = k,
                                   .indices = sets.data(),
                                   .entry_stride = kGroupQueries * k,
                                   .entries = entries.data(),
                                   .counts = counts.data()};
  if (which == Which::kReference) {
    index_union_ref(params);
  } else {
    index_union_cpu(params, threads(workers));
  }
  std::vector<std::vector<std::uint32_t>> found;
  for (std::int64_t g = 0; g < num_groups; ++g) {
    const auto* row = entries.data() + g * kGroupQueries * k;
    found.emplace_back(row, row + counts.data()[g]);
  }
  return found;
}

std::uint32_t entry(std::uint32_t id, std::uint32_t mask) { return id | mask << 29; }

TEST(IndexUnion, IsTheUnionWithMasks) {
  const std::vector<std::int32_t> sets = {1, 4, 9, 4, 7, -1, 4, 9, 12, 5, -1, -1, -1, -1, -1};
  const auto groups = query_groups({{0, 5}});
  for (const Which which : {Which::kReference, Which::kCpu}) {
    const auto found = unite(which, sets, 3, groups);
    ASSERT_EQ(found.size(), 2u);
    EXPECT_THAT(found[0], ::testing::ElementsAre(entry(1, 1), entry(4, 7), entry(7, 2), entry(9, 5),
                                                 entry(12, 4)));
    EXPECT_THAT(found[1], ::testing::ElementsAre(entry(5, 1)));
  }
}

TEST(IndexUnion, CpuEqualsTheReference) {
  std::mt19937 random(51);
  const auto groups = query_groups({{0, 3}, {2, 5}, {10, 0}, {4, 1}, {6, 4}});
  for (const std::int64_t k : {1, 2, 31, 200}) {
    for (const std::int64_t ids : {k, 3 * k + 7, kUnionMaxKeys}) {
      for (const double shared : {0.0, 0.6, 1.0}) {
        const auto sets = testing::random_sets(13, k, ids, shared, random);
        const auto expected = unite(Which::kReference, sets, k, groups);
        for (const int workers : {1, 3})
          EXPECT_EQ(unite(Which::kCpu, sets, k, groups, workers), expected);
      }
    }
  }
}

TEST(IndexUnion, NoQueriesNoKeysNoGroups) {
  EXPECT_TRUE(unite(Which::kCpu, {}, 4, query_groups({})).empty());
  EXPECT_THAT(unite(Which::kCpu, {}, 0, query_groups({{0, 2}})),
              ::testing::ElementsAre(::testing::IsEmpty()));
}

TEST(IndexUnion, TensorFace) {
  const at::Tensor indices = at::tensor({1, 4, 9, 4, 7, -1}, at::kInt).view({2, 3});
  const IndexUnion u = index_union(indices, at::tensor({0, 2}, at::kInt));
  EXPECT_EQ(u.entries.size(1), 9);
  ASSERT_EQ(u.counts.item<int>(), 4);
  EXPECT_EQ(static_cast<std::uint32_t>(u.entries[0][1].item<int>()), entry(4, 3));
}

TEST(IndexUnion, RefusesWhatItCannotRead) {
  const at::Tensor indices =
      at::tensor({1, 4, 9, 4, 7, -1, 0, 1, 2, 3, 4, 5}, at::kInt).view({4, 3});
  EXPECT_THROW(index_union(indices.to(at::kLong), at::tensor({0, 2}, at::kInt)), InputError);
  EXPECT_THROW(index_union(indices, at::tensor({0, 4}, at::kInt)), InputError);  // four in a group
  EXPECT_THROW(index_union(indices, at::tensor({0, 3, 5}, at::kInt)),
               InputError);  // beyond the rows
  EXPECT_THROW(index_union(indices, at::tensor({2, 1}, at::kInt)), InputError);
  EXPECT_THROW(
      index_union(at::tensor({1 << 29}, at::kInt).view({1, 1}), at::tensor({0, 1}, at::kInt)),
      InputError);
}

}  // namespace
}  // namespace indexcache
