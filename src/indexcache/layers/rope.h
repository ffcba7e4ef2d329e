// Rotary position embeddings, model spec section 2.2.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace indexcache {

// Which coordinates form a rotated pair (a, b) -> (a cos - b sin, b cos + a sin).
enum class RopeStyle {
  kInterleaved,  // (x[2i], x[2i+1]): the main attention of all models, the indexer of GLM
  kHalfSplit,    // (x[i], x[i + dim/2]): the indexer of DeepSeek-V3.2
};

// One row a position: complex64 unit vectors exp(i * pos * inv_freq), [T, dim/2]. Angles are
// computed in fp32, as every reference stack does; the rotation is done in fp32 and cast back.
struct RopeTable {
  at::Tensor rotations;
};

// inv_freq [dim/2] fp32 (YaRN applied) on the device; positions first .. first + count - 1.
RopeTable make_rope_table(const at::Tensor& inv_freq, std::int64_t first_position,
                          std::int64_t count);

// x [..., T, dim] or [..., T, heads, dim]: `heads_axis` says which. Differentiable.
enum class RopeLayout { kTokensLast, kTokensThenHeads };
at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table, RopeStyle style,
                      RopeLayout layout);

}  // namespace indexcache
