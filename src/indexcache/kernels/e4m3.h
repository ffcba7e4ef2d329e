// The 8-bit floating-point format e4m3 (FN: sign, 4 bits of exponent with bias 7, 3 of mantissa; no
// infinities, NaN at 0x7F and 0xFF, largest 448) on the host.
#pragma once

#include <cstdint>

namespace indexcache {

constexpr float kE4m3Max = 448.0f;
constexpr std::uint8_t kE4m3NaN = 0x7F;

// What a byte stands for.
double e4m3_value(std::uint8_t bits);

// The nearest value, ties to even; beyond the largest, the largest. NaN gives kE4m3NaN.
std::uint8_t nearest_e4m3(float value);

}  // namespace indexcache
