// What an expansion of e4m3 latents decides on the host: how much room it needs, how sparse_mla finds
// its rows, and when it pays.
#include "indexcache/ops/sparse_mla/latent_expansion.h"

#include <gtest/gtest.h>

namespace indexcache {
namespace {

LatentStore paged(std::int64_t num_keys, const std::int32_t* table) {
  return {.format = LatentFormat::kE4M3,
          .row_stride = 656,
          .page_stride = 656 * 16,
          .page_shift = 4,
          .block_table = table,
          .table_stride = 9,
          .num_keys = num_keys};
}

TEST(LatentExpansion, HasRoomForWholePagesOfEachRequest) {
  const std::int32_t table[27] = {};
  EXPECT_EQ(pages_of_request(paged(100, table)), 7);
  EXPECT_EQ(expanded_keys(paged(100, table), 3), 3 * 7 * 16);
  EXPECT_EQ(expanded_keys(paged(5, table), 3), 3 * 5);
  EXPECT_EQ(expanded_keys(paged(100, nullptr), 3), 7 * 16);  // slots: one cache for all
  LatentStore rows = paged(100, nullptr);
  rows.page_shift = 31;
  EXPECT_EQ(expanded_keys(rows, 1), 100);
  rows.num_keys = 0;
  EXPECT_EQ(expanded_keys(rows, 1), 0);
}

TEST(LatentExpansion, IsAStoreOfBf16Rows) {
  const std::int32_t table[27] = {};
  std::int32_t own[21];
  std::uint16_t rows[16];
  const LatentStore store = expanded_store(
      {.from = paged(100, table), .num_requests = 3, .num_pages = 50, .rows = rows, .table = own});
  EXPECT_EQ(store.format, LatentFormat::kBFloat16);
  EXPECT_EQ(store.data, rows);
  EXPECT_EQ(store.row_stride, 1152);
  EXPECT_EQ(store.page_stride, 1152 * 16);
  EXPECT_EQ(store.page_shift, 4);
  EXPECT_EQ(store.block_table, own);
  EXPECT_EQ(store.table_stride, 7);
  EXPECT_EQ(store.num_keys, 100);
}

TEST(LatentExpansion, PaysWhereKeysAreGatheredManyTimes) {
  SparseMlaWgmmaParams p;
  p.num_groups = 40;
  p.entry_stride = 100;
  p.kv = paged(1000, nullptr);  // 63 pages: 1008 keys
  EXPECT_FALSE(worth_expanding(p, 1));
  p.kv.num_keys = 992;
  EXPECT_TRUE(worth_expanding(p, 1));
  p.kind = EntryKind::kUnion;
  EXPECT_FALSE(worth_expanding(p, 1));
  p.num_groups *= 3;
  EXPECT_TRUE(worth_expanding(p, 1));
  p.kv.format = LatentFormat::kBFloat16;
  EXPECT_FALSE(worth_expanding(p, 1));
  p.kv = paged(kMostExpandedKeys, nullptr);
  p.num_groups = p.entry_stride = 1 << 20;
  EXPECT_TRUE(worth_expanding(p, 1));
  p.kv.num_keys += 16;
  EXPECT_FALSE(worth_expanding(p, 1));
  const std::int32_t table[9] = {};
  p.kv = paged(1, table);
  EXPECT_TRUE(worth_expanding(p, kMostExpandedRequests));
  EXPECT_FALSE(worth_expanding(p, kMostExpandedRequests + 1));
}

}  // namespace
}  // namespace indexcache
