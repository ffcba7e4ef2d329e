// e4m3 values as bf16.
#pragma once

#include <cstdint>

#include "indexcache/kernels/wgmma_bf16.cuh"

namespace indexcache::device {

__device__ inline std::uint32_t multiply_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// The two values of 16 bits, by way of half and float; exact, NaN stays NaN.
__device__ inline std::uint32_t e4m3_pair_to_bf16(std::uint16_t pair) {
  float first, second;
  asm("{\n"
      ".reg .b32 halves;\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.f16x2.e4m3x2 halves, %2;\n"
      "mov.b32 {low, high}, halves;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}\n"
      : "=f"(first), "=f"(second)
      : "h"(pair));
  return pack_bf16(first, second);
}

// Eight values * scale, a bf16 twice, rounded to bf16.
__device__ inline uint4 e4m3_to_bf16(uint2 raw, std::uint32_t scale) {
  const auto pair = [=](std::uint32_t word, int shift) {
    return multiply_bf16x2(e4m3_pair_to_bf16(static_cast<std::uint16_t>(word >> shift)), scale);
  };
  return make_uint4(pair(raw.x, 0), pair(raw.x, 16), pair(raw.y, 0), pair(raw.y, 16));
}

}  // namespace indexcache::device
