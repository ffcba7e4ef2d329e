// Blocks of 128 values as e4m3 by a warp, 4 neighbouring values a lane. Arithmetic and the rule for
// NaN: kernels/e4m3_block.h, whose host function gives the same bits.
#pragma once

#include <cstdint>

#include "indexcache/kernels/e4m3_block.h"

namespace indexcache::device {

// Two values, the first in the low byte.
__device__ __forceinline__ std::uint32_t nearest_e4m3_pair(float first, float second) {
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
}

struct E4m3Block {
  std::uint32_t bytes;  // of this lane
  float scale;          // of the block
};

__device__ __forceinline__ E4m3Block e4m3_block(const float (&values)[4], int scale_zero_bits,
                                                float amax_floor) {
  std::uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) amax = max(amax, __float_as_uint(values[i]) & 0x7FFFFFFFu);
  amax = __reduce_max_sync(0xFFFFFFFFu, amax);
  if (amax >= 0x7F800000u) return {0x7F7F7F7Fu, 1.0f};
  const float least = __fdiv_rn(fmaxf(__uint_as_float(amax), amax_floor), 448.0f);
  const std::uint32_t below = (1u << scale_zero_bits) - 1;
  const float scale = __uint_as_float((__float_as_uint(least) + below) & ~below);
  const float inverse = __frcp_rn(scale);
  return {nearest_e4m3_pair(values[0] * inverse, values[1] * inverse) |
              nearest_e4m3_pair(values[2] * inverse, values[3] * inverse) << 16,
          scale};
}

}  // namespace indexcache::device
