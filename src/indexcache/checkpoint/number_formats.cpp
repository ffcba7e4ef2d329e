#include "indexcache/checkpoint/number_formats.h"

#include <algorithm>
#include <cmath>

namespace indexcache {
namespace {

constexpr std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table{};
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = bits >> 3 & 0xf;
    const int fraction = bits & 0x7;
    // Bias 7, three fraction bits: value = (8 + fraction) 2^(exponent - 10), subnormal below.
    float value = static_cast<float>(exponent == 0 ? fraction : fraction + 8);
    for (int e = std::max(exponent, 1); e < 10; ++e) value /= 2;
    for (int e = 10; e < exponent; ++e) value *= 2;
    if ((bits & 0x7f) == 0x7f) value = std::bit_cast<float>(0x7fc00000u);
    table[bits] = bits & 0x80 ? -value : value;
  }
  return table;
}

}  // namespace

constinit const std::array<float, 256> kFp8E4m3Values = make_e4m3_table();

std::uint8_t fp8_e4m3_from_float(float value) {
  const auto sign = static_cast<std::uint8_t>(std::signbit(value) ? 0x80 : 0);
  if (std::isnan(value)) return sign | 0x7f;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return sign | 0x7e;
  if (magnitude < 0x1p-6f) {
    // Subnormal: multiples of 2^-9, of which 8 is the smallest normal number's code.
    return sign | static_cast<std::uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  }
  // Keep three fraction bits of the float, nearest even; a carry moves into the exponent.
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
  return sign | static_cast<std::uint8_t>(rounded - ((127 - 7) << 3));
}

float e8m0_to_float(std::uint8_t bits) {
  if (bits == 0xff) return std::bit_cast<float>(0x7fc00000u);
  return std::ldexp(1.0f, bits - 127);
}

std::uint16_t f16_from_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) {
    return sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f));
  }
  const auto positive = bits & 0x7fffffff;
  const std::uint32_t rounded = (positive + 0xfff + (positive >> 13 & 1)) >> 13;
  return sign | static_cast<std::uint16_t>(rounded - ((127 - 15) << 10));
}

}  // namespace indexcache
