#include "indexcache/train/fake_fp8.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "indexcache/checkpoint/writer.h"

namespace indexcache {
namespace {

// Value by value what the writer stores and a reader gets back.
TEST(FakeFp8, IsWhatAnFp8FolderKeeps) {
  at::manual_seed(1);
  constexpr std::int64_t kRows = 256, kColumns = 384;
  auto matrix = at::randn({kRows, kColumns}) * 0.02;
  matrix.narrow(0, 0, 128).narrow(1, 128, 128).fill_(0);   // a block of zeros
  matrix.narrow(0, 128, 128).narrow(1, 0, 128).mul_(1e3);  // and one of another size
  const auto found = through_fp8(matrix);

  const auto* data = matrix.const_data_ptr<float>();
  const auto stored = quantize_fp8_blocks({data, static_cast<std::size_t>(matrix.numel())}, kRows,
                                          kColumns, QuantizationConfig{});
  const auto* values = found.const_data_ptr<float>();
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t column = 0; column < kColumns; ++column) {
      const auto at = static_cast<std::size_t>(row * kColumns + column);
      const auto scale = stored.scales[static_cast<std::size_t>(row / 128 * 3 + column / 128)];
      ASSERT_EQ(values[at], fp8_e4m3_to_float(stored.values[at]) * scale)
          << row << ", " << column << " of " << data[at];
    }
  }
  EXPECT_GT((found - matrix).abs().max().item<float>(), 0);
}

TEST(FakeFp8, StacksAreRoundedMatrixByMatrix) {
  at::manual_seed(2);
  const auto stack = at::randn({3, 128, 256});
  const auto found = through_fp8(stack);
  for (std::int64_t i = 0; i < 3; ++i) EXPECT_TRUE(found[i].equal(through_fp8(stack[i])));
}

TEST(FakeFp8, RoundingTwiceIsRoundingOnce) {
  at::manual_seed(3);
  const auto once = through_fp8(at::randn({128, 128}));
  EXPECT_LT((through_fp8(once) - once).abs().max().item<float>(), 1e-6);
}

}  // namespace
}  // namespace indexcache
