// A cluster of CTAs: their ranks, their barrier, and reads of each other's shared memory. sm_90.
#pragma once

#include <cstdint>

namespace indexcache::device {

__device__ inline int cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// All threads of all CTAs of the cluster; what they wrote before is seen by all after.
__device__ inline void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// The same, but orders no memory accesses: for those whose values are already in use.
__device__ inline void cluster_meet() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.aligned;" ::
          : "memory");
}

// Where `address` of this CTA's shared memory lies in that of CTA `rank`.
__device__ inline std::uint32_t peer_address(std::uint32_t address, int rank) {
  std::uint32_t peer;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
  return peer;
}
// Reads are ordered among themselves and after cluster_sync, not with this CTA's other accesses.
__device__ inline float read_peer(std::uint32_t peer) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(peer));
  return value;
}
__device__ inline std::uint32_t read_peer_byte(std::uint32_t peer) {
  std::uint32_t value;
  asm volatile("ld.shared::cluster.u8 %0, [%1];" : "=r"(value) : "r"(peer));
  return value;
}
__device__ inline float4 read_peer_4(std::uint32_t peer) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(peer));
  return v;
}

}  // namespace indexcache::device
