// Reads of global memory that may be left out without a branch, and stores of 16 bytes to shared
// memory.
#pragma once

#include <cstdint>

namespace indexcache::device {

// `from` is a multiple of 16. Where not `present` nothing is read and zeros come back.
__device__ inline uint4 read_16(const void* from, bool present) {
  uint4 v;
  asm volatile(
      "{\n"
      ".reg .pred present;\n"
      "setp.ne.s32 present, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@present ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(__cvta_generic_to_global(from)), "r"(static_cast<int>(present)));
  return v;
}
// `from` is a multiple of 4.
__device__ inline float read_4(const void* from, bool present) {
  float v;
  asm volatile(
      "{\n"
      ".reg .pred present;\n"
      "setp.ne.s32 present, %2, 0;\n"
      "mov.b32 %0, 0;\n"
      "@present ld.global.nc.b32 %0, [%1];\n"
      "}\n"
      : "=&f"(v)
      : "l"(__cvta_generic_to_global(from)), "r"(static_cast<int>(present)));
  return v;
}

// The address is a multiple of 16.
__device__ inline void store_16(std::uint32_t to_shared, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to_shared), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

// The address is a multiple of 8.
__device__ inline uint2 load_8(std::uint32_t shared) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(shared) : "memory");
  return v;
}

}  // namespace indexcache::device
