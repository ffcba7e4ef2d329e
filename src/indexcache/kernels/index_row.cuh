// Rows of the indexer (kernels/index_row.h) in half a warp: lane l of 16 holds the coordinates 8 l to
// 8 l + 7. The same bits as the host's function.
#pragma once

#include <cstdint>

#include "indexcache/kernels/e4m3_block.cuh"
#include "indexcache/kernels/index_row.h"

namespace indexcache::device {

// The angles of this lane's coordinates: cosine and sine of the pair of each.
struct LaneAngles {
  float c[kLaneValues], s[kLaneValues];
};

__device__ __forceinline__ void load_four(const float* from, float* to) {
  const float4 four = __ldg(reinterpret_cast<const float4*>(from));
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// Of a position that is not in the table: NaN.
__device__ __forceinline__ LaneAngles load_angles(const RopeRows& rope, std::int64_t token,
                                                  RopeStyle style, int lane) {
  LaneAngles angles;
  const std::int64_t position = rope.positions[token];
  if (position < 0 || position >= rope.num_positions) {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) angles.c[i] = angles.s[i] = __int_as_float(0x7FFFFFFF);
    return angles;
  }
  const float* cosines = rope.cos_sin + position * kIndexRopeDim;
  const float* sines = cosines + kIndexRopeDim / 2;
  if (style == RopeStyle::kInterleaved) {  // lanes 0 to 7 have four pairs each
    float c[4], s[4];
    load_four(cosines + 4 * (lane % 8), c);
    load_four(sines + 4 * (lane % 8), s);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) angles.c[i] = c[i / 2], angles.s[i] = s[i / 2];
  } else {  // lanes l and l + 4 share eight
#pragma unroll
    for (int i = 0; i < kLaneValues; i += 4) {
      load_four(cosines + 8 * (lane % 4) + i, angles.c + i);
      load_four(sines + 8 * (lane % 4) + i, angles.s + i);
    }
  }
  return angles;
}

__device__ __forceinline__ void rotate_pairs(float (&x)[kLaneValues], const LaneAngles& angles,
                                             RopeStyle style, int lane) {
  float other[kLaneValues];
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    other[i] = style == RopeStyle::kInterleaved ? x[i ^ 1] : __shfl_xor_sync(kWholeWarp, x[i], 4);
  }
  if (lane >= kIndexRopeDim / kLaneValues) return;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const bool first = style == RopeStyle::kInterleaved ? i % 2 == 0 : lane < 4;
    const float own = __fmul_rn(x[i], angles.c[i]), cross = __fmul_rn(other[i], angles.s[i]);
    x[i] = first ? __fsub_rn(own, cross) : __fadd_rn(own, cross);
  }
}

__device__ __forceinline__ void multiply_by_hadamard(float (&x)[kLaneValues], int lane) {
#pragma unroll
  for (int step = 1; step < kLaneValues; step *= 2) {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      if (i & step) continue;
      const float a = x[i], b = x[i + step];
      x[i] = a + b;
      x[i + step] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < kBlockLanes; step *= 2) {
    const float sign = lane & step ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      const float other = __shfl_xor_sync(kWholeWarp, x[i], step);
      x[i] = __fmaf_rn(x[i], sign, other);  // the product is exact
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) x[i] *= kHadamardNorm;
}

// Whole rows become NaN where the position is not in the table: so they do by their first 64.
__device__ __forceinline__ void rotate_index_row(float (&x)[kLaneValues], const LaneAngles& angles,
                                                 const IndexKeyType& type, int lane) {
  rotate_pairs(x, angles, type.rope, lane);
  if (type.hadamard != Hadamard::kNone) multiply_by_hadamard(x, lane);
}

}  // namespace indexcache::device
