// The number formats that checkpoints store, one value at a time. All bit patterns.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace indexcache {

// F8_E4M3FN: 0x7F and 0xFF are NaN, no infinities, largest 448.
extern const std::array<float, 256> kFp8E4m3Values;
inline float fp8_e4m3_to_float(std::uint8_t bits) { return kFp8E4m3Values[bits]; }
std::uint8_t fp8_e4m3_from_float(float value);  // round to nearest even, saturating to +-448

// F8_E8M0: a bare exponent, 2^(bits - 127); 0xFF is NaN.
float e8m0_to_float(std::uint8_t bits);

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Round to nearest even; a NaN stays a (quiet) NaN. Free of branches, so that loops vectorise.
inline std::uint16_t bf16_from_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const std::uint32_t quiet = bits >> 16 | 0x40;
  return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

inline float f16_to_float(std::uint16_t bits) {
  // The half's exponent and fraction at a float's place are its value times 2^-112, subnormals
  // included; only infinity and NaN need their exponent filled up.
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7fff) << 13;
  const std::uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  return std::bit_cast<float>(scaled | special | sign);
}

// Round to nearest even, overflow to infinity.
std::uint16_t f16_from_float(float value);

}  // namespace indexcache
