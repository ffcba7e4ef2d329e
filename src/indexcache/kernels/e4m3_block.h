// Blocks of fp32 values as e4m3 with one scale: what the caches of index keys and latents hold.
//
//   scale = the least number of the format that is >= max(amax, amax_floor) / 448
//   out   = nearest e4m3 of value * (1 / scale)        in fp32, every operation rounded by itself
//
// A block that holds a NaN or an infinity becomes NaN throughout, its scale 1: what reads it sees NaN,
// and scales are always positive and finite.
#pragma once

#include <cstdint>

namespace indexcache {

// Scales are stored as fp32; the format says which of its numbers they may be.
enum class ScaleFormat {
  kFloat32,
  kBFloat16,    // for readers that round the scale to bf16
  kPowerOfTwo,  // ue8m0
};

// So many low bits of the fp32 are 0.
constexpr int zero_bits(ScaleFormat format) {
  return format == ScaleFormat::kFloat32 ? 0 : format == ScaleFormat::kBFloat16 ? 16 : 23;
}

// What amax_floor may be: 1 / scale stays finite, and so does the scale.
constexpr float kLeastAmaxFloor = 0x1p-100f, kMostAmaxFloor = 0x1p100f;
// DeepSeek's own.
constexpr float kDefaultAmaxFloor = 1e-4f;

// Returns the scale.
float store_e4m3_block(const float* values, int count, ScaleFormat format, float amax_floor,
                       std::uint8_t* out);

}  // namespace indexcache
