// The e4m3 format on the host: values by hand, and the nearest of all values for every input tried.
#include "indexcache/kernels/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "indexcache/kernels/e4m3_block.h"
#include "support/e4m3_rows.h"

namespace indexcache {
namespace {

TEST(E4m3, ValuesByHand) {
  EXPECT_EQ(e4m3_value(0x00), 0);
  EXPECT_EQ(e4m3_value(0x01), std::ldexp(1, -9));
  EXPECT_EQ(e4m3_value(0x07), 7 * std::ldexp(1, -9));
  EXPECT_EQ(e4m3_value(0x08), std::ldexp(1, -6));
  EXPECT_EQ(e4m3_value(0x38), 1);
  EXPECT_EQ(e4m3_value(0xBC), -1.5);
  EXPECT_EQ(e4m3_value(0x7E), 448);
  EXPECT_TRUE(std::isnan(e4m3_value(0x7F)));
  EXPECT_TRUE(std::isnan(e4m3_value(0xFF)));
}

// By looking at all values: the nearest, of two as near the one with an even last bit.
std::uint8_t nearest_of_all(double magnitude) {
  std::uint8_t best = 0;
  for (int bits = 1; bits < 0x7F; ++bits) {
    const double here = std::abs(e4m3_value(static_cast<std::uint8_t>(bits)) - magnitude);
    const double there = std::abs(e4m3_value(best) - magnitude);
    if (here < there || (here == there && bits % 2 == 0)) best = static_cast<std::uint8_t>(bits);
  }
  return best;
}

TEST(E4m3, RoundsToTheNearestOfAllValues) {
  const auto check = [](float x) {
    EXPECT_EQ(nearest_e4m3(x), nearest_of_all(x)) << x;
    EXPECT_EQ(nearest_e4m3(-x), nearest_of_all(x) | 0x80) << -x;
  };
  for (int bits = 0; bits < 0x7E; ++bits) {
    const auto low = static_cast<float>(e4m3_value(static_cast<std::uint8_t>(bits)));
    const auto high = static_cast<float>(e4m3_value(static_cast<std::uint8_t>(bits + 1)));
    const float middle = (low + high) / 2;  // exact
    for (const float x : {low, std::nextafter(middle, low), middle, std::nextafter(middle, high)}) {
      check(x);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    check(std::ldexp(static_cast<float>(random() % 1000003) / 1000003,
                     static_cast<int>(random() % 24) - 12));
  }
  for (const float x : {449.0f, 480.0f, 1e30f, std::numeric_limits<float>::infinity(), 1e-45f}) {
    check(x);
  }
  EXPECT_EQ(nearest_e4m3(std::numeric_limits<float>::quiet_NaN()), kE4m3NaN);
}

struct Block {
  std::vector<std::uint8_t> bytes;
  float scale;
};
Block stored(const std::vector<float>& values, ScaleFormat format, float floor = 1e-4f) {
  Block block{std::vector<std::uint8_t>(values.size()), 0};
  block.scale = store_e4m3_block(values.data(), static_cast<int>(values.size()), format, floor,
                                 block.bytes.data());
  return block;
}

TEST(E4m3Block, ScalesRoundUpToTheirFormat) {
  const std::vector<float> at{448, -1, 0, 224};
  for (const ScaleFormat format :
       {ScaleFormat::kFloat32, ScaleFormat::kBFloat16, ScaleFormat::kPowerOfTwo}) {
    EXPECT_EQ(stored(at, format).scale, 1);  // just so: nothing to round
    EXPECT_EQ(stored(at, format).bytes, (std::vector<std::uint8_t>{0x7E, 0xB8, 0x00, 0x76}));
  }
  const std::vector<float> above{std::nextafter(448.0f, 449.0f)};
  EXPECT_EQ(stored(above, ScaleFormat::kPowerOfTwo).scale, 2);
  EXPECT_EQ(stored(above, ScaleFormat::kBFloat16).scale, 1 + 0x1p-7f);
  EXPECT_EQ(stored(above, ScaleFormat::kFloat32).scale, 1 + 0x1p-23f);
  EXPECT_EQ(stored({100}, ScaleFormat::kPowerOfTwo).scale, 0.25f);
}

TEST(E4m3Block, ZerosAndSmallRowsHaveTheFloorsScale) {
  for (const float value : {0.0f, -0.0f, 1e-30f, 1e-5f}) {
    const Block block = stored({value, 0}, ScaleFormat::kFloat32);
    EXPECT_EQ(block.scale, 1e-4f / 448);
    EXPECT_EQ(stored({value, 0}, ScaleFormat::kPowerOfTwo).scale, 0x1p-22f);
  }
  EXPECT_EQ(stored({0, -0.0f}, ScaleFormat::kFloat32).bytes, (std::vector<std::uint8_t>{0, 0x80}));
}

TEST(E4m3Block, NonFiniteRowsAreNaNThroughout) {
  for (const float value :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    const Block block = stored({1, value, 2}, ScaleFormat::kPowerOfTwo);
    EXPECT_EQ(block.scale, 1);
    EXPECT_EQ(block.bytes, (std::vector<std::uint8_t>{0x7F, 0x7F, 0x7F}));
  }
}

TEST(E4m3Block, RandomRowsAreWithinTheBound) {
  std::mt19937 random(5);
  for (int row = 0; row < 600; ++row) {
    const auto format = static_cast<ScaleFormat>(row % 3);
    std::vector<float> values(128);
    std::vector<double> expected;
    const int size = static_cast<int>(random() % 220) - 120;
    for (float& value : values) {
      value = std::ldexp(static_cast<float>(static_cast<int>(random() % 2001) - 1000), size);
      expected.push_back(value);
    }
    const Block block = stored(values, format, kLeastAmaxFloor);
    testing::expect_e4m3_block(block.bytes, block.scale, expected, 0, format, kLeastAmaxFloor);
  }
}

}  // namespace
}  // namespace indexcache
