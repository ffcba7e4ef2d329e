// Reads of global memory past the first level of caches, and stores of 16 bytes to shared memory.
#pragma once

#include <cstdint>

namespace indexcache::device {

// `from` is a multiple of 8.
__device__ inline uint2 read_8(const void* from) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(__cvta_generic_to_global(from)));
  return v;
}

// The address is a multiple of 16.
__device__ inline void store_16(std::uint32_t to_shared, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to_shared), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

}  // namespace indexcache::device
