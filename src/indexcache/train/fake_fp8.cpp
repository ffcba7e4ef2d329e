#include "indexcache/train/fake_fp8.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

namespace indexcache {
namespace {

constexpr std::int64_t kBlock = 128;
constexpr double kLargest = 448;  // of E4M3

}  // namespace

at::Tensor through_fp8(const at::Tensor& matrix) {
  const auto blocks = matrix.unflatten(-1, {-1, kBlock}).unflatten(-3, {-1, kBlock});
  const auto largest = blocks.abs().amax({-3, -1}, /*keepdim=*/true);
  const auto scale = at::where(largest > 0, largest / kLargest, 1.0);
  return ((blocks / scale).to(at::kFloat8_e4m3fn).to(at::kFloat) * scale).view_as(matrix);
}

}  // namespace indexcache
