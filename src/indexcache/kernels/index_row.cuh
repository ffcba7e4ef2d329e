// Rows of the indexer (kernels/index_row.h) in a warp: lane l holds the coordinates 4 l to 4 l + 3. The
// same bits as the host's function.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "indexcache/kernels/index_row.h"

namespace indexcache::device {

__device__ __forceinline__ void load_four(const float* from, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
__device__ __forceinline__ void load_four(const __nv_bfloat16* from, float (&to)[4]) {
  const uint2 four = *reinterpret_cast<const uint2*>(from);
  to[0] = __uint_as_float(four.x << 16), to[1] = __uint_as_float(four.x & 0xFFFF0000u);
  to[2] = __uint_as_float(four.y << 16), to[3] = __uint_as_float(four.y & 0xFFFF0000u);
}

// The angles of this lane's coordinates: cosines and sines of as many pairs as it has part in.
struct LaneAngles {
  float c[4], s[4];
};

__device__ __forceinline__ LaneAngles load_angles(const RopeRows& rope, std::int64_t token,
                                                  RopeStyle style, int lane) {
  LaneAngles angles;
  const std::int64_t position = rope.positions[token];
  const bool known = position >= 0 && position < rope.num_positions;
  const float* row = rope.cos_sin + position * kIndexRopeDim;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Interleaved, a lane has the pairs 2 l and 2 l + 1; half-split, part of 4 (l mod 8) + i.
    const int pair =
        style == RopeStyle::kInterleaved ? 2 * (lane % 16) + i / 2 : 4 * (lane % 8) + i;
    angles.c[i] = known ? __ldg(row + pair) : __int_as_float(0x7FFFFFFF);
    angles.s[i] = known ? __ldg(row + 32 + pair) : __int_as_float(0x7FFFFFFF);
  }
  return angles;
}

__device__ __forceinline__ void rotate_pairs(float (&x)[4], const LaneAngles& angles,
                                             RopeStyle style, int lane) {
  float other[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    other[i] = style == RopeStyle::kInterleaved ? x[i ^ 1] : __shfl_xor_sync(0xFFFFFFFFu, x[i], 8);
  }
  if (lane >= 16) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool first = style == RopeStyle::kInterleaved ? i % 2 == 0 : lane < 8;
    const float own = __fmul_rn(x[i], angles.c[i]), cross = __fmul_rn(other[i], angles.s[i]);
    x[i] = first ? __fsub_rn(own, cross) : __fadd_rn(own, cross);
  }
}

__device__ __forceinline__ void multiply_by_hadamard(float (&x)[4], int lane) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const float a = x[i], b = x[i + step];
      x[i] = a + b;
      x[i + step] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float other = __shfl_xor_sync(0xFFFFFFFFu, x[i], step);
      x[i] = lane & step ? other - x[i] : x[i] + other;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] *= kHadamardNorm;
}

// Whole rows become NaN where the position is not in the table: so they do by their first 64.
__device__ __forceinline__ void rotate_index_row(float (&x)[4], const LaneAngles& angles,
                                                 const IndexKeyType& type, int lane) {
  rotate_pairs(x, angles, type.rope, lane);
  if (type.hadamard != Hadamard::kNone) multiply_by_hadamard(x, lane);
}

}  // namespace indexcache::device
