#include "indexcache/layers/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/polar.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>

namespace indexcache {

RopeTable make_rope_table(const RopeFrequencies& frequencies, std::int64_t first_position,
                          std::int64_t count) {
  const auto positions = at::arange(first_position, first_position + count,
                                    frequencies.inv_freq.options().dtype(at::kFloat));
  const auto angles = at::outer(positions, frequencies.inv_freq);
  return {at::polar(at::full_like(angles, frequencies.amplitude), angles)};
}

at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table, RopeStyle style,
                      RopeLayout layout) {
  const auto rotations =
      layout == RopeLayout::kTokensHeads ? table.rotations.unsqueeze(-2) : table.rotations;
  const auto wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  // Pairs to the last axis: [..., dim / 2, 2].
  const bool interleaved = style == RopeStyle::kInterleaved;
  const auto pairs =
      interleaved ? wide.unflatten(-1, {-1, 2}) : wide.unflatten(-1, {2, -1}).transpose(-1, -2);
  const auto rotated = at::view_as_real(at::view_as_complex(pairs.contiguous()) * rotations);
  const auto result = interleaved ? rotated : rotated.transpose(-1, -2);
  return result.flatten(-2).to(x.scalar_type());
}

}  // namespace indexcache
