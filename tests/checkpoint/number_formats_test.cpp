// The number formats against independent formulas: every code of the small ones, rounding against a
// search for the nearest value.
#include "indexcache/checkpoint/number_formats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace indexcache {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// sign * (1 + f / 2^m) * 2^(e - bias), or f / 2^m * 2^(1 - bias) for e = 0: the definition of every
// small float.
double formula(int bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
  const double significand = std::ldexp(fraction, -fraction_bits) + (exponent > 0 ? 1 : 0);
  const double value = std::ldexp(significand, std::max(exponent, 1) - bias);
  return bits >> (exponent_bits + fraction_bits) & 1 ? -value : value;
}

// The nearest of `codes`' values to x, ties to the even code; values ascend.
int nearest_code(const std::vector<double>& values, double x) {
  const auto above = std::lower_bound(values.begin(), values.end(), x);
  if (above == values.begin()) return 0;
  if (above == values.end()) return static_cast<int>(values.size()) - 1;
  const int high = static_cast<int>(above - values.begin());
  const double up = values[high] - x, down = x - values[high - 1];
  if (up != down) return up < down ? high : high - 1;
  return high % 2 == 0 ? high : high - 1;
}

TEST(Fp8E4m3, DecodesAllCodes) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = fp8_e4m3_to_float(static_cast<std::uint8_t>(bits));
    if (bits == 0x7f || bits == 0xff) {
      EXPECT_TRUE(std::isnan(value)) << bits;
    } else {
      EXPECT_EQ(value, formula(bits, 4, 3)) << bits;
      EXPECT_EQ(std::signbit(value), bits >= 0x80) << bits;
    }
  }
  EXPECT_EQ(fp8_e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(fp8_e4m3_to_float(0x01), 0x1p-9f);
}

TEST(Fp8E4m3, RoundsToTheNearestEvenAndSaturates) {
  std::vector<double> values;
  for (int bits = 0; bits <= 0x7e; ++bits) values.push_back(formula(bits, 4, 3));
  const auto check = [&](float x) {
    const int expected = nearest_code(values, std::fabs(static_cast<double>(x)));
    EXPECT_EQ(fp8_e4m3_from_float(x), expected | (std::signbit(x) ? 0x80 : 0)) << x;
  };
  for (std::size_t i = 0; i + 1 < values.size(); ++i) {
    const auto middle = static_cast<float>((values[i] + values[i + 1]) / 2);
    for (const float x : {static_cast<float>(values[i]), middle, std::nextafter(middle, 0.0f),
                          std::nextafter(middle, kInfinity)}) {
      check(x);
      check(-x);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    check(std::ldexp(std::uniform_real_distribution<float>(-1, 1)(random),
                     std::uniform_int_distribution<int>(-20, 12)(random)));
  }
  EXPECT_EQ(fp8_e4m3_from_float(kInfinity), 0x7e);
  EXPECT_EQ(fp8_e4m3_from_float(-1e30f), 0xfe);
  EXPECT_EQ(fp8_e4m3_from_float(kNan) & 0x7f, 0x7f);
}

TEST(E8m0, IsAnExponent) {
  EXPECT_EQ(e8m0_to_float(127), 1.0f);
  EXPECT_EQ(e8m0_to_float(120), 0x1p-7f);
  EXPECT_EQ(e8m0_to_float(0), 0x1p-127f);
  EXPECT_EQ(e8m0_to_float(254), 0x1p127f);
  EXPECT_TRUE(std::isnan(e8m0_to_float(255)));
}

TEST(F16, DecodesAllCodes) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_float(static_cast<std::uint16_t>(bits));
    if ((bits & 0x7c00) != 0x7c00) {
      EXPECT_EQ(value, formula(bits, 5, 10)) << bits;
    } else if ((bits & 0x3ff) == 0) {
      EXPECT_EQ(value, bits & 0x8000 ? -kInfinity : kInfinity) << bits;
    } else {
      EXPECT_TRUE(std::isnan(value)) << bits;
    }
    EXPECT_EQ(std::signbit(value), bits >= 0x8000) << bits;
  }
}

TEST(F16, EncodesToTheNearestEven) {
  std::vector<double> values;  // the code after the largest is infinity, which rounds like 2^16
  for (int bits = 0; bits <= 0x7c00; ++bits) values.push_back(formula(bits, 5, 10));
  for (std::size_t i = 0; i + 1 < values.size(); ++i) {
    const auto middle = static_cast<float>((values[i] + values[i + 1]) / 2);
    for (const float x : {static_cast<float>(values[i]), middle, std::nextafter(middle, 0.0f),
                          std::nextafter(middle, kInfinity)}) {
      ASSERT_EQ(f16_from_float(x), nearest_code(values, x)) << x;
      ASSERT_EQ(f16_from_float(-x), nearest_code(values, x) | 0x8000) << x;
    }
  }
  EXPECT_EQ(f16_from_float(1e30f), 0x7c00);
  EXPECT_TRUE(std::isnan(f16_to_float(f16_from_float(kNan))));
}

TEST(Bf16, RoundTripsAndRoundsToTheNearestEven) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(bf16_from_float(value)))) << bits;
      continue;
    }
    EXPECT_EQ(bf16_from_float(value), bits);
    if (std::isinf(value) || std::fabs(value) >= bf16_to_float(0x7f7f)) continue;
    // Half way to the next larger magnitude: the even neighbour.
    const auto middle = std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16 | 0x8000);
    EXPECT_EQ(bf16_from_float(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(bf16_from_float(std::nextafter(middle, std::copysign(0.0f, middle))), bits);
    EXPECT_EQ(bf16_from_float(std::nextafter(middle, std::copysign(kInfinity, middle))), bits + 1);
  }
  EXPECT_EQ(bf16_from_float(std::numeric_limits<float>::max()), 0x7f80);
  // A NaN whose upper bits are all zero must not become an infinity.
  EXPECT_TRUE(std::isnan(bf16_to_float(bf16_from_float(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace indexcache
