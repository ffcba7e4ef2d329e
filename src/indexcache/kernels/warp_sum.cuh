// Sums over the lanes of a warp.
#pragma once

namespace indexcache::device {

// Of the values of this lane and those before it. All lanes of the warp call it.
template <class T>
__device__ __forceinline__ T sum_through(T value) {
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (unsigned step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(0xFFFFFFFFu, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

}  // namespace indexcache::device
