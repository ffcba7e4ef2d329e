// How a key's latent lies in a cache, shared by latent_append, which writes it, and sparse_mla, which
// reads it.
//
//   bf16   1152 bytes a row: 512 latent values, 64 RoPE values
//   e4m3    656 bytes a row: 512 e4m3 latent values, 4 fp32 scales of 128 latent values each, 64
//           bf16 RoPE values; latent d is rounded to bf16 twice: e4m3[d] * bf16(scale[d / 128]),
//           the product to bf16
#pragma once

#include <cstdint>

namespace indexcache {

enum class LatentFormat { kBFloat16, kE4M3 };

constexpr std::int64_t kLatentDim = 512, kRopeDim = 64;
constexpr std::int64_t latent_row_bytes(LatentFormat format) {
  return format == LatentFormat::kBFloat16 ? 2 * (kLatentDim + kRopeDim)
                                           : kLatentDim + 4 * 4 + 2 * kRopeDim;
}

}  // namespace indexcache
