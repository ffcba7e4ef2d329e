#include "indexcache/kernels/e4m3.h"

#include <bit>
#include <cmath>
#include <limits>

namespace indexcache {

double e4m3_value(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return bits >> 7 ? -magnitude : magnitude;
}

std::uint8_t nearest_e4m3(float value) {
  if (std::isnan(value)) return kE4m3NaN;
  const std::uint32_t sign = std::bit_cast<std::uint32_t>(value) >> 31 << 7;
  const float magnitude = std::abs(value);
  if (magnitude >= kE4m3Max) return static_cast<std::uint8_t>(sign | 0x7E);
  // Below the normal values steps are of 2^-9, which is the last bit of a sum with 2^14.
  if (magnitude < 0x1p-6f) {
    return static_cast<std::uint8_t>(sign |
                                     (std::bit_cast<std::uint32_t>(magnitude + 0x1p14f) & 15));
  }
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = (bits + 0x7FFFF + (bits >> 20 & 1)) >> 20;
  return static_cast<std::uint8_t>(sign | (rounded - ((127 - 7) << 3)));
}

}  // namespace indexcache
