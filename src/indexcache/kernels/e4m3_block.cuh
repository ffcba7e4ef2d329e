// Blocks of 128 values as e4m3 by half a warp, 8 neighbouring values a lane; all 32 lanes take part.
// Arithmetic and the rule for NaN: kernels/e4m3_block.h, whose host function gives the same bits.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "indexcache/kernels/e4m3_block.h"

namespace indexcache::device {

constexpr int kBlockLanes = 16, kLaneValues = 8;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// Eight neighbouring values as they lie in memory; read first, widened where they are used.
template <typename T>
struct RawValues;
template <>
struct RawValues<float> {
  float4 low, high;
  __device__ __forceinline__ void load(const float* from) {
    low = __ldg(reinterpret_cast<const float4*>(from));
    high = __ldg(reinterpret_cast<const float4*>(from) + 1);
  }
  __device__ __forceinline__ void widen(float (&to)[kLaneValues]) const {
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  }
};
template <>
struct RawValues<__nv_bfloat16> {
  uint4 pairs;
  __device__ __forceinline__ void load(const __nv_bfloat16* from) {
    pairs = __ldg(reinterpret_cast<const uint4*>(from));
  }
  __device__ __forceinline__ void widen(float (&to)[kLaneValues]) const {
    const std::uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
  }
};

// Two values, the first in the low byte.
__device__ __forceinline__ std::uint32_t nearest_e4m3_pair(float first, float second) {
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
}

// max(a, |b|), NaN if one is.
__device__ __forceinline__ float larger_magnitude(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(fabsf(b)));
  return larger;
}

struct E4m3Block {
  uint2 bytes;  // of this lane
  float scale;  // of the block
};

__device__ __forceinline__ E4m3Block e4m3_block(const float (&values)[kLaneValues],
                                                int scale_zero_bits, float amax_floor) {
  float amax = amax_floor;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) amax = larger_magnitude(amax, values[i]);
#pragma unroll
  for (int step = 1; step < kBlockLanes; step *= 2) {
    amax = larger_magnitude(amax, __shfl_xor_sync(kWholeWarp, amax, step));
  }
  if (!(amax <= 3.4028234664e38f)) return {make_uint2(0x7F7F7F7Fu, 0x7F7F7F7Fu), 1.0f};
  const std::uint32_t below = (1u << scale_zero_bits) - 1;
  const std::uint32_t least = __float_as_uint(__fdiv_rn(amax, 448.0f));
  const float scale = __uint_as_float((least + below) & ~below);
  const float inverse = __frcp_rn(scale);
  std::uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = nearest_e4m3_pair(values[2 * i] * inverse, values[2 * i + 1] * inverse);
  }
  return {make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16), scale};
}

}  // namespace indexcache::device
