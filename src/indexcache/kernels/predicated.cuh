// Memory operations without branches. An `if` around an atomic becomes one, even where the instruction could have
// a predicate: for a warp it costs more than what it leaves out, and keeps the work on one key from running under that on
// the next. So a lane that wants no atomic does it on a word that nobody reads (AsideWords), and stores have predicates.
#pragma once

#include <cstdint>

#include "indexcache/kernels/score_order.cuh"

namespace indexcache::device {

// Words of shared memory, by address.
__device__ __forceinline__ void add_to(std::uint32_t address, std::uint32_t value) {
  asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void set_bits(std::uint32_t address, std::uint32_t bits) {
  asm volatile("red.shared.or.b32 [%0], %1;" ::"r"(address), "r"(bits) : "memory");
}
__device__ __forceinline__ std::uint32_t fetch_add(std::uint32_t address, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "r"(address), "r"(value)
               : "memory");
  return before;
}
// A word for each lane, in a bank of its own.
struct alignas(128) AsideWords {
  std::uint32_t words[32];
  __device__ __forceinline__ std::uint32_t own() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(words)) + threadIdx.x % 32 * 4;
  }
};
__device__ __forceinline__ void store_where(bool wanted, std::uint32_t address, RankedKey value) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %0, 0;\n"
      "@wanted st.shared.u64 [%1], %2;\n"
      "}\n" ::"r"(static_cast<unsigned>(wanted)),
      "r"(address), "l"(value)
      : "memory");
}
// The same in device memory.
__device__ __forceinline__ void store_where(bool wanted, RankedKey* to, RankedKey key) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %0, 0;\n"
      "@wanted st.global.u64 [%1], %2;\n"
      "}\n" ::"r"(static_cast<unsigned>(wanted)),
      "l"(__cvta_generic_to_global(to)), "l"(key)
      : "memory");
}

}  // namespace indexcache::device
