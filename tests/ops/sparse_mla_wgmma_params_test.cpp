// What the Hopper kernels of sparse_mla decide on the host: which arguments they take, how many
// CTAs they launch, and how rows of a cache are read.
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/kernels/union_entry.h"

namespace indexcache {
namespace {

SparseMlaWgmmaParams valid() {
  SparseMlaWgmmaParams p;
  p.num_queries = p.num_groups = 5;
  p.num_heads = 20;
  p.kv.row_stride = 1152;
  p.kv.num_keys = 100;
  return p;
}

TEST(SparseMlaWgmma, TakesWhatItsCommentsAllow) {
  EXPECT_NO_THROW(check_sparse_mla_wgmma(valid()));
  SparseMlaWgmmaParams p = valid();
  p.kind = EntryKind::kUnion;
  p.num_groups = 2;
  const std::int32_t numbers[3] = {};
  p.group_begin = p.counts = numbers;
  EXPECT_NO_THROW(check_sparse_mla_wgmma(p));
}

template <typename Change>
void expect_refused(const Change& change, const char* says) {
  SparseMlaWgmmaParams p = valid();
  change(p);
  try {
    check_sparse_mla_wgmma(p);
    ADD_FAILURE() << "not refused: " << says;
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr(says));
  }
}

TEST(SparseMlaWgmma, RefusesTheRest) {
  expect_refused([](auto& p) { p.num_heads = 129; }, "expected 1 to 128, found 129");
  expect_refused([](auto& p) { p.num_heads = 0; }, "heads");
  expect_refused([](auto& p) { p.softmax_scale = 0; }, "softmax_scale");
  expect_refused([](auto& p) { p.softmax_scale = NAN; }, "softmax_scale");
  expect_refused([](auto& p) { p.num_groups = 4; }, "expected 5, found 4");
  expect_refused([](auto& p) { p.kv.row_stride = 656; }, "at least 1152");
  expect_refused([](auto& p) { p.kv.row_stride = 1160; }, "multiple of 16");
  expect_refused([](auto& p) { p.kv.page_stride = 8; }, "bytes a page");
  expect_refused([](auto& p) { p.kv.page_shift = 32; }, "0 to 31");
  expect_refused([](auto& p) { p.kv.data = reinterpret_cast<const void*>(8); }, "multiples of 16");
  expect_refused([](auto& p) { p.kind = EntryKind::kUnion; }, "counts");
  expect_refused(
      [](auto& p) {
        p.kind = EntryKind::kUnion;
        p.kv.num_keys = kUnionMaxKeys + 1;
      },
      "number of keys");
}

TEST(SparseMlaWgmma, CtasCoverTheRowsOfEachGroup) {
  SparseMlaWgmmaParams p = valid();
  EXPECT_EQ(sparse_mla_wgmma_ctas(p), 5);
  p.num_heads = 128;
  EXPECT_EQ(sparse_mla_wgmma_ctas(p), 10);
  p.split = EntrySplit::kCluster;
  EXPECT_EQ(sparse_mla_wgmma_ctas(p), 40);
  p = valid();
  p.kind = EntryKind::kUnion;
  EXPECT_EQ(sparse_mla_wgmma_ctas(p), 5);  // 60 rows
  p.num_heads = 22;
  EXPECT_EQ(sparse_mla_wgmma_ctas(p), 10);  // 66
  p.num_heads = 128;
  EXPECT_EQ(sparse_mla_wgmma_ctas(p), 30);
}

SparseMlaParams plain() {
  SparseMlaParams p;
  p.num_queries = 5;
  p.num_heads = 20;
  p.dim = 576;
  p.value_dim = 512;
  p.num_keys = 100;
  p.top_k = 7;
  p.dtype = SparseMlaDType::kBFloat16;
  p.kv_stride = 584;
  return p;
}

TEST(SparseMlaWgmma, TakesThePlainOpsArgumentsOfItsShapeAlone) {
  const auto taken = wgmma_params(plain());
  ASSERT_TRUE(taken);
  EXPECT_NO_THROW(check_sparse_mla_wgmma(*taken));
  EXPECT_EQ(taken->kv.row_stride, 1168);
  EXPECT_EQ(taken->num_groups, 5);
  EXPECT_EQ(taken->entry_stride, 7);
  const auto refused = [](const auto& change) {
    SparseMlaParams p = plain();
    change(p);
    return !wgmma_params(p);
  };
  EXPECT_TRUE(refused([](auto& p) { p.dtype = SparseMlaDType::kFloat32; }));
  EXPECT_TRUE(refused([](auto& p) { p.dim = 512; }));
  EXPECT_TRUE(refused([](auto& p) { p.value_dim = 576; }));
  EXPECT_TRUE(refused([](auto& p) { p.num_heads = 129; }));
  EXPECT_TRUE(refused([](auto& p) { p.softmax_scale = -1; }));
  EXPECT_TRUE(refused([](auto& p) { p.kv_stride = 577; }));
  EXPECT_TRUE(refused([](auto& p) { p.q = reinterpret_cast<const void*>(2); }));
}

std::uint16_t bf16(float value) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
}

TEST(LatentStore, ReadsPagesThroughABlockTable) {
  // 3 pages of 2 keys; key s has the value s + 1 everywhere.
  std::vector<std::uint16_t> rows(3 * 2 * 576 + 8 * 3);
  const std::int32_t table[2][3] = {{-1, -1, -1}, {2, -1, 0}};
  const LatentStore store = {.data = rows.data(),
                             .row_stride = 1152,
                             .page_stride = 2 * 1152 + 16,
                             .page_shift = 1,
                             .block_table = &table[0][0],
                             .table_stride = 3,
                             .num_keys = 5};
  for (int s = 0; s < 6; ++s) {
    const std::int64_t page = table[1][s / 2];
    if (page < 0) continue;
    std::fill_n(rows.begin() + page * (2 * 576 + 8) + s % 2 * 576, 576,
                bf16(static_cast<float>(s + 1)));
  }
  std::vector<float> values(576);
  for (const int s : {0, 1, 4}) {
    ASSERT_TRUE(read_latent(store, 1, s, values.data())) << s;
    EXPECT_EQ(values[0], s + 1);
    EXPECT_EQ(values[575], s + 1);
  }
  for (const int s : {-1, 2, 3, 5, 6})
    EXPECT_FALSE(read_latent(store, 1, s, values.data())) << s;  // no page; beyond the keys
  EXPECT_FALSE(read_latent(store, 0, 0, values.data()));
}

TEST(LatentStore, ReadsE4m3WithItsScales) {
  std::vector<unsigned char> row(656);
  const float scales[4] = {1, 2, 0.25f, 1 + 0x1p-8f};  // the last lies between two bf16 values
  std::memcpy(&row[512], scales, 16);
  row[0] = 0x38;    // 1
  row[1] = 0xC0;    // -2
  row[2] = 0x01;    // 2^-9, the smallest denormal
  row[3] = 0x7E;    // 448
  row[4] = 0x7F;    // NaN
  row[128] = 0x3C;  // 1.5 times 2
  row[256] = 0x08;  // 2^-6 / 4
  row[384] = 0x38;  // 1 times the rounded scale
  const std::uint16_t rope = bf16(-3);
  std::memcpy(&row[512 + 16 + 2 * 63], &rope, 2);
  const LatentStore store = {
      .format = LatentFormat::kE4M3, .data = row.data(), .row_stride = 656, .num_keys = 1};
  std::vector<float> values(576);
  ASSERT_TRUE(read_latent(store, 0, 0, values.data()));
  EXPECT_EQ(values[0], 1);
  EXPECT_EQ(values[1], -2);
  EXPECT_EQ(values[2], 0x1p-9f);
  EXPECT_EQ(values[3], 448);
  EXPECT_TRUE(std::isnan(values[4]));
  EXPECT_EQ(values[5], 0);
  EXPECT_EQ(values[128], 3);
  EXPECT_EQ(values[256], 0x1p-8f);
  EXPECT_EQ(values[384], 1);  // to even
  EXPECT_EQ(values[575], -3);
}

}  // namespace
}  // namespace indexcache
