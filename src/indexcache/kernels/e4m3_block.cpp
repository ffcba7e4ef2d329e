#include "indexcache/kernels/e4m3_block.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "indexcache/kernels/e4m3.h"

namespace indexcache {

float store_e4m3_block(const float* values, int count, ScaleFormat format, float amax_floor,
                       std::uint8_t* out) {
  std::uint32_t amax = 0;  // magnitudes ordered as integers: NaN is above infinity
  for (int i = 0; i < count; ++i) {
    amax = std::max(amax, std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFu);
  }
  if (amax >= 0x7F800000u) {
    std::fill_n(out, count, kE4m3NaN);
    return 1;
  }
  const float least = std::max(std::bit_cast<float>(amax), amax_floor) / kE4m3Max;
  const std::uint32_t below = (std::uint32_t{1} << zero_bits(format)) - 1;
  const auto scale = std::bit_cast<float>((std::bit_cast<std::uint32_t>(least) + below) & ~below);
  const float inverse = 1 / scale;
  for (int i = 0; i < count; ++i) out[i] = nearest_e4m3(values[i] * inverse);
  return scale;
}

}  // namespace indexcache
