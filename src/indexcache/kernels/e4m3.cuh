// e4m3 values as bf16. What meets NaN among them has to look for it.
#pragma once

#include <cstdint>

namespace indexcache::device {

__device__ inline std::uint32_t multiply_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// Bytes 2 i and 2 i + 1 of `four`. An e4m3's sign, exponent and mantissa, moved to where bf16 has
// them, are its value times 2^(7 - 127), denormals included; the product with 2^120 is exact. NaN
// (all ones) comes out as 480.
__device__ inline std::uint32_t e4m3_pair_to_bf16(std::uint32_t four, int pair) {
  const std::uint32_t high =
      __byte_perm(four, 0, pair == 0 ? 0x1404 : 0x3424);  // each in the upper byte of a half
  const std::uint32_t moved = (high & 0x80008000u) | (high >> 4 & 0x07F007F0u);
  constexpr std::uint32_t kTwoTo120 = 0x7B807B80u;
  return multiply_bf16x2(moved, kTwoTo120);
}

// Eight values * scale, a bf16 twice, rounded to bf16; e4m3's NaN comes out as finite.
__device__ inline uint4 e4m3_to_bf16(uint2 raw, std::uint32_t scale) {
  return make_uint4(multiply_bf16x2(e4m3_pair_to_bf16(raw.x, 0), scale),
                    multiply_bf16x2(e4m3_pair_to_bf16(raw.x, 1), scale),
                    multiply_bf16x2(e4m3_pair_to_bf16(raw.y, 0), scale),
                    multiply_bf16x2(e4m3_pair_to_bf16(raw.y, 1), scale));
}

// Whether any of the values looked at was NaN.
class E4M3NanSeeker {
 public:
  __device__ void look_at(uint4 raw) {
    top_bits_ |= carry(raw.x) | carry(raw.y) | carry(raw.z) | carry(raw.w);
  }
  __device__ bool found() const { return (top_bits_ & 0x80808080u) != 0; }

 private:
  __device__ static std::uint32_t carry(std::uint32_t four) {
    return (four & 0x7F7F7F7Fu) + 0x01010101u;
  }
  std::uint32_t top_bits_ = 0;
};

}  // namespace indexcache::device
