// Sums over the lanes of a warp, all of which call it.
#pragma once

namespace indexcache::device {

// Of `own` over this lane and those before it.
template <class Number>
__device__ __forceinline__ Number sum_through(Number own) {
  const auto lane = static_cast<Number>(threadIdx.x) % 32;
#pragma unroll
  for (Number distance = 1; distance < 32; distance *= 2) {
    const Number before = __shfl_up_sync(0xFFFFFFFFu, own, distance);
    if (lane >= distance) own += before;
  }
  return own;
}

}  // namespace indexcache::device
