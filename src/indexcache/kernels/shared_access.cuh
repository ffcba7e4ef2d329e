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
__device__ inline uint4 load_16(std::uint32_t shared) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}
__device__ inline void store_16(std::uint32_t to_shared, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to_shared), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

// Four 8 x 8 matrices of 16 bits, as a warp holds them in accumulators' layout: lane l has of matrix m
// row l / 4, columns 2 (l % 4) and the next, in words[m]; and says in `to` where row l % 8 of matrix
// l / 8 goes, a multiple of 16.
__device__ inline void store_matrices(std::uint32_t to, const std::uint32_t* words) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

}  // namespace indexcache::device
