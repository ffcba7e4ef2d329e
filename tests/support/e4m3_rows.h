// Whether a block of e4m3 values and its scale are what they stand for, within a derived bound.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "indexcache/kernels/e4m3.h"
#include "indexcache/kernels/e4m3_block.h"

namespace indexcache::testing {

constexpr double kHalfUlp = 0x1p-24;  // the relative error of one fp32 operation

// The least number of the format that is at least `value`, in double.
inline double rounded_up(double value, ScaleFormat format) {
  const double ulp = std::ldexp(1.0, std::ilogb(value) - 23 + zero_bits(format));
  return std::ceil(value / ulp) * ulp;
}

// Half the distance of the e4m3 values around `value`.
inline double half_step(double value) {
  return std::abs(value) < 0x1p-6 ? 0x1p-10 : std::ldexp(1.0, std::ilogb(value) - 4);
}

// `expected` in double, each known up to `error`: finite, or with a NaN or an infinity. With an error of
// 0 and a scale of a power of two every value is the nearest.
inline void expect_e4m3_block(std::span<const std::uint8_t> bytes, float scale,
                              std::span<const double> expected, double error, ScaleFormat format,
                              float amax_floor) {
  if (std::any_of(expected.begin(), expected.end(), [](double x) { return !std::isfinite(x); })) {
    EXPECT_EQ(scale, 1);
    for (const std::uint8_t byte : bytes) ASSERT_EQ(byte, kE4m3NaN);
    return;
  }
  double amax = 0;
  for (const double x : expected) amax = std::max(amax, std::abs(x));
  const auto least = [&](double shift, double rounding) {
    return rounded_up(std::max(amax + shift, double{amax_floor}) / 448 * (1 + rounding), format);
  };
  const bool exact =
      error == 0 && std::has_single_bit(std::bit_cast<std::uint32_t>(scale) << 9 | 1);
  ASSERT_GE(scale, exact ? least(0, 0) : least(-error, -kHalfUlp));
  ASSERT_LE(scale, exact ? least(0, 0) : least(error, kHalfUlp));
  ASSERT_EQ(std::bit_cast<std::uint32_t>(scale) % (std::uint32_t{1} << zero_bits(format)), 0u);
  for (std::size_t d = 0; d < bytes.size(); ++d) {
    const double found = e4m3_value(bytes[d]) * scale, x = expected[d];
    const double uncertain = exact ? 0 : error + 3 * kHalfUlp * std::abs(x);
    const double bound = half_step((std::abs(x) + uncertain) / scale) * scale + uncertain;
    ASSERT_LE(std::abs(found - x), bound)
        << "value " << d << ": expected " << x << ", found " << found;
    if (!exact) continue;
    // As values: a sum of zeros has a sign by its order.
    ASSERT_EQ(e4m3_value(bytes[d]), e4m3_value(nearest_e4m3(static_cast<float>(x / scale))))
        << "value " << d;
  }
}

}  // namespace indexcache::testing
