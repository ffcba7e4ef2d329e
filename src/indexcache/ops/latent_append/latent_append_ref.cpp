#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "indexcache/kernels/e4m3.h"
#include "indexcache/ops/latent_append/latent_append_params.h"

namespace indexcache {

void latent_append_ref(const LatentAppendParams& p, double* scales) {
  for (std::int64_t t = 0; t < p.num_tokens; ++t) {
    const auto* row = static_cast<const std::uint16_t*>(p.latents) + t * p.latent_stride;
    for (std::int64_t block = 0; block < kLatentDim / kLatentScaleValues; ++block) {
      double amax = p.amax_floor;
      for (std::int64_t d = 0; d < kLatentScaleValues; ++d) {
        const std::uint32_t bits = row[block * kLatentScaleValues + d];
        const double value = std::bit_cast<float>(bits << 16);
        if (!std::isfinite(value)) amax = std::numeric_limits<double>::quiet_NaN();
        if (!std::isnan(amax)) amax = std::max(amax, std::abs(value));
      }
      scales[t * 4 + block] = amax / kE4m3Max;
    }
  }
}

}  // namespace indexcache
