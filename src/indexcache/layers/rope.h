// Rotary position embeddings, model spec section 2.2.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "indexcache/kernels/rope_style.h"

namespace indexcache {

// The model's frequencies: inv_freq [dim / 2] fp32 (YaRN applied) and the factor on the rotated
// vectors' length (YaRN's mscale / mscale_all_dim; 1 without).
struct RopeFrequencies {
  at::Tensor inv_freq;
  double amplitude = 1.0;
};

// One row a position: amplitude * exp(i * position * inv_freq), [T, dim / 2] complex64 on
// inv_freq's device. Angles are computed in fp32, as every reference stack does.
struct RopeTable {
  at::Tensor rotations;
};
RopeTable make_rope_table(const RopeFrequencies& frequencies, std::int64_t first_position,
                          std::int64_t count);

// Where the token axis of x stands.
enum class RopeLayout {
  kTokens,       // [..., T, dim]
  kTokensHeads,  // [..., T, heads, dim]
};
// The rotation is done in fp32 (double stays double) and cast back to x's dtype. Both styles return
// each coordinate where it stood. Differentiable.
at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table, RopeStyle style,
                      RopeLayout layout);

}  // namespace indexcache
