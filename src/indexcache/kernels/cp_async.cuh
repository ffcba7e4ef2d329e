// cp.async: 16 bytes from global to shared memory without passing registers.
#pragma once

#include <cstdint>

namespace indexcache::device {

// Rows that neighbours will read too: the L2 should drop them last.
__device__ inline std::uint64_t keep_in_l2() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Both addresses are multiples of 16. Where `present` is false it writes zeros and reads nothing.
__device__ inline void copy_16(std::uint32_t to_shared, const void* from, bool present,
                               std::uint64_t policy) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(to_shared),
      "l"(__cvta_generic_to_global(from)), "r"(present ? 16 : 0), "l"(policy)
      : "memory");
}
__device__ inline void copy_16(std::uint32_t to_shared, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared),
               "l"(__cvta_generic_to_global(from)), "r"(present ? 16 : 0)
               : "memory");
}
// The same of 8 and of 4 bytes, and multiples of these.
__device__ inline void copy_8(std::uint32_t to_shared, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to_shared),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ inline void copy_4(std::uint32_t to_shared, const void* from, bool present = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to_shared),
               "l"(__cvta_generic_to_global(from)), "r"(present ? 4 : 0)
               : "memory");
}
// Copies issued since the last commit become a group; the wait is for all but the newest kPending.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace indexcache::device
