#include "indexcache/layers/index_set.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_paged.h"

namespace indexcache {
namespace {

using ::testing::ElementsAreArray;

constexpr std::int64_t kKeys = 40, kTopK = 12;

// Ascending, the first rows short.
at::Tensor random_sets(std::int64_t tokens) {
  const auto sets = at::full({tokens, kTopK}, -1, at::kInt);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto count = std::min(t, kTopK);
    const auto chosen = std::get<0>(at::randperm(kKeys).narrow(0, 0, count).sort());
    sets[t].narrow(0, 0, count).copy_(chosen);
  }
  return sets;
}

std::vector<std::int32_t> values(const at::Tensor& x) {
  return {x.const_data_ptr<std::int32_t>(), x.const_data_ptr<std::int32_t>() + x.numel()};
}

TEST(IndexSet, GroupsTokensAsQueryGroupsDoes) {
  EXPECT_FALSE(IndexSet().defined());
  for (std::int64_t tokens = 1; tokens <= 8; ++tokens) {
    for (std::int64_t first_position = 0; first_position <= 7; ++first_position) {
      const IndexSet set(random_sets(tokens));
      EXPECT_TRUE(set.defined());
      EXPECT_THAT(values(set.grouped(first_position).group_begin),
                  ElementsAreArray(query_groups({{first_position, tokens}}).begin))
          << tokens << " tokens from " << first_position;
    }
  }
}

TEST(IndexSet, CopiesShareOneUnionWhicheverAsksFirst) {
  const IndexSet own(random_sets(6));
  const IndexSet first_reader = own, second_reader = own;
  const void* built = first_reader.grouped(0).keys.entries.const_data_ptr();
  EXPECT_EQ(own.grouped(0).keys.entries.const_data_ptr(), built);
  EXPECT_EQ(second_reader.grouped(0).keys.entries.const_data_ptr(), built);
  const IndexSet of_the_same_tensor(own.indices());
  EXPECT_NE(of_the_same_tensor.grouped(0).keys.entries.const_data_ptr(), built);
}

TEST(IndexSet, AttentionOverItsGroupsIsAttentionOverItsRows) {
  at::manual_seed(1);
  for (const std::int64_t tokens : {1, 2, 3, 20}) {
    for (const std::int64_t first_position : {0, 1, 5}) {
      SCOPED_TRACE(::testing::Message() << tokens << " tokens from " << first_position);
      const IndexSet set(random_sets(tokens));
      const auto latents = at::randn({kKeys, 576}).to(at::kBFloat16);
      const auto query = at::randn({tokens, 4, 576}).to(at::kBFloat16);
      const auto by_rows = sparse_mla(query, latents, set.indices(), 512, 0.04);
      const auto& grouped = set.grouped(first_position);
      const auto by_groups =
          sparse_mla_union(query, {.pages = latents.unsqueeze(0)}, grouped.group_begin,
                           std::nullopt, grouped.keys.entries, grouped.keys.counts, 0.04);
      EXPECT_TRUE(by_rows.out.equal(by_groups.out));  // on a CPU of the same bits
      EXPECT_TRUE(by_rows.lse.equal(by_groups.lse));
    }
  }
}

}  // namespace
}  // namespace indexcache
