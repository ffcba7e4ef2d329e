// Reads and stores of shared memory, several words at once.
#pragma once

#include <cstdint>

namespace indexcache::device {

// The address is a multiple of 8.
__device__ inline uint2 load_8(std::uint32_t shared) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(shared) : "memory");
  return v;
}

// The address is a multiple of 16.
__device__ inline void store_16(std::uint32_t to_shared, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to_shared), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

}  // namespace indexcache::device
