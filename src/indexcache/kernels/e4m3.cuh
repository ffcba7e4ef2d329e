// e4m3 values, 16 at a time, as bf16. What meets NaN among them has to look for it.
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

// value * bf16(scale), rounded to bf16; e4m3's NaN comes out as finite.
__device__ inline void e4m3_to_bf16(uint4 raw, float scale, uint4 (&out)[2]) {
  std::uint32_t factor;
  asm("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(factor) : "f"(scale));
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  std::uint32_t pairs[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    pairs[i] = multiply_bf16x2(e4m3_pair_to_bf16(words[i / 2], i % 2), factor);
  out[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  out[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
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
