#include <algorithm>
#include <bit>
#include <cstring>

#include "indexcache/ops/latent_append/latent_append_params.h"

namespace indexcache {
namespace {

// 512 latents as e4m3, then the scales of their blocks.
void store_latents(const LatentAppendParams& p, const std::uint16_t* latents, std::uint8_t* row) {
  for (std::int64_t first = 0; first < kLatentDim; first += kLatentScaleValues) {
    float values[kLatentScaleValues];
    for (std::int64_t d = 0; d < kLatentScaleValues; ++d) {
      values[d] = std::bit_cast<float>(std::uint32_t{latents[first + d]} << 16);
    }
    const float scale =
        store_e4m3_block(values, kLatentScaleValues, p.scale, p.amax_floor, row + first);
    std::memcpy(row + kLatentDim + first / kLatentScaleValues * 4, &scale, sizeof scale);
  }
}

void append(const LatentAppendParams& p, std::int64_t token) {
  const std::int64_t slot = p.slots[token];
  if (slot < 0 || slot >= p.num_pages * p.page_keys) return;
  auto* row = static_cast<std::uint8_t*>(p.pages) + slot / p.page_keys * p.page_stride +
              slot % p.page_keys * p.row_stride;
  const auto* latents = static_cast<const std::uint16_t*>(p.latents) + token * p.latent_stride;
  const auto* rope_key = static_cast<const std::uint16_t*>(p.rope_keys) + token * p.rope_stride;
  if (p.format == LatentFormat::kBFloat16) {
    std::memcpy(row, latents, 2 * kLatentDim);
  } else {
    store_latents(p, latents, row);
  }
  std::memcpy(row + latent_row_bytes(p.format) - 2 * kRopeDim, rope_key, 2 * kRopeDim);
}

}  // namespace

void latent_append_cpu(const LatentAppendParams& p, const Parallel& parallel) {
  parallel.run([&](int worker) {
    const std::int64_t share = (p.num_tokens + parallel.num_workers - 1) / parallel.num_workers;
    const std::int64_t end = std::min(p.num_tokens, (worker + 1) * share);
    for (std::int64_t t = worker * share; t < end; ++t) append(p, t);
  });
}

}  // namespace indexcache
