// Index keys' rotation against the definition, and the text of a cache's type.
#include "indexcache/kernels/index_row.h"

#include <gtest/gtest.h>

#include "indexcache/base/error.h"
#include "indexcache/kernels/index_key_type.h"
#include "support/cache_inputs.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using testing::Values;

TEST(IndexRow, TurnsPairsByHand) {
  std::vector<float> angles(kIndexRopeDim, 0);  // a quarter turn for all: (a, b) -> (-b, a)
  std::fill(angles.begin() + 32, angles.end(), 1.0f);
  std::vector<float> row(kIndexDim);
  for (int d = 0; d < kIndexDim; ++d) row[d] = static_cast<float>(d + 1);
  auto interleaved = row, half_split = row;
  rotate_index_row(interleaved.data(), angles.data(), {.rope = RopeStyle::kInterleaved});
  rotate_index_row(half_split.data(), angles.data(), {.rope = RopeStyle::kHalfSplit});
  EXPECT_EQ(interleaved[0], -2);
  EXPECT_EQ(interleaved[1], 1);
  EXPECT_EQ(interleaved[63], 63);
  EXPECT_EQ(half_split[0], -33);
  EXPECT_EQ(half_split[32], 1);
  EXPECT_EQ(half_split[63], 32);
  for (int d = kIndexRopeDim; d < kIndexDim; ++d) {
    EXPECT_EQ(interleaved[d], d + 1);
    EXPECT_EQ(half_split[d], d + 1);
  }
}

TEST(IndexRow, IsTheDefinition) {
  std::mt19937 random(2);
  const auto table = testing::angle_table(Values::kNormal, 300);
  for (const IndexKeyType& type : index_key_types()) {
    for (int i = 0; i < 20; ++i) {
      auto row = testing::cache_values(Values::kNormal, 1, kIndexDim, random);
      const std::vector<double> wide(row.begin(), row.end());
      double expected[kIndexDim], size = 0;
      for (const double x : wide) size += std::abs(x);
      const float* angles = &table[random() % 300 * kIndexRopeDim];
      rotate_index_row_ref(wide.data(), angles, type, expected);
      rotate_index_row(row.data(), angles, type);
      for (int d = 0; d < kIndexDim; ++d) ASSERT_NEAR(row[d], expected[d], 16 * 0x1p-24 * size);
    }
  }
}

// Twice is once around: the matrix is its own inverse; and dot products stay.
TEST(IndexRow, TheHadamardRotationIsOrthonormal) {
  std::mt19937 random(3);
  std::vector<float> none(kIndexRopeDim, 0);
  std::fill_n(none.begin(), 32, 1.0f);
  const IndexKeyType type{.hadamard = Hadamard::kNormalised};
  auto row = testing::cache_values(Values::kExact, 1, kIndexDim, random);
  const auto before = row;
  rotate_index_row(row.data(), none.data(), type);
  double dot = 0, dot_before = 0;
  for (int d = 0; d < kIndexDim; ++d) dot += row[d] * row[d], dot_before += before[d] * before[d];
  EXPECT_NEAR(dot, dot_before, 1e-5 * dot_before);
  rotate_index_row(row.data(), none.data(), type);
  for (int d = 0; d < kIndexDim; ++d) EXPECT_NEAR(row[d], before[d], 1e-4);
}

TEST(IndexKeyType, ParsesWhatItPrints) {
  EXPECT_EQ(index_key_types().size(), 12u);
  for (const IndexKeyType& type : index_key_types()) {
    EXPECT_EQ(parse_index_key_type(print_index_key_type(type)), type);
  }
  EXPECT_EQ(print_index_key_type({}), "interleaved");
  EXPECT_EQ(print_index_key_type(
                {RopeStyle::kHalfSplit, Hadamard::kNormalised, ScaleFormat::kPowerOfTwo}),
            "half_split+hadamard+ue8m0");
  for (const char* text : {"", "neox", "interleaved+", "hadamard", "half_split+ue8m0+hadamard"}) {
    EXPECT_EQ(
        testing::thrown<InputError>([&] { parse_index_key_type(text); }),
        std::string("index key type: expected interleaved or half_split, then [+hadamard], then "
                    "[+bf16 or +ue8m0], found \"") +
            text + "\"");
  }
}

}  // namespace
}  // namespace indexcache
