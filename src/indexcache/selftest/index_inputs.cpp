#include "indexcache/selftest/index_inputs.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <cmath>
#include <limits>

namespace indexcache {

at::Tensor index_rows(std::int64_t rows, const at::Generator& generator) {
  const auto exponents = at::randint(-10, 11, {rows, 1}, generator, at::kFloat);
  const auto values =
      (at::randn({rows, 128}, generator) * exponents.exp2()).to(at::kBFloat16).to(at::kFloat);
  for (std::int64_t row = 3; row < rows; row += 10) values[row].zero_();
  for (std::int64_t row = 7; row < rows; row += 10) {
    values[row][row % 128] = std::numeric_limits<double>::quiet_NaN();
  }
  return values;
}

at::Tensor angle_table() {
  const auto pair = at::arange(32, at::kDouble);
  const auto angles = at::arange(200, at::kDouble).unsqueeze(1) * at::pow(1e4, pair / -32);
  return at::cat({angles.cos(), angles.sin()}, 1).to(at::kFloat);
}

at::Tensor rotation_error(const at::Tensor& rows, const IndexKeyType& type) {
  const auto sizes = rows.to(at::kDouble).abs().nan_to_num(0.0);
  return type.hadamard == Hadamard::kNone
             ? sizes.amax(1, /*keepdim=*/true) * (8 * 0x1p-24)
             : sizes.sum(1, /*keepdim=*/true) * (12 * 0x1p-24 / std::sqrt(128.0));
}

}  // namespace indexcache
