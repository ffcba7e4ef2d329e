#include "indexcache/selftest/e4m3_checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

#include "indexcache/kernels/e4m3.h"

namespace indexcache {

Verdict check_e4m3_rows(const at::Tensor& bytes, const at::Tensor& scale, const at::Tensor& rows,
                        const at::Tensor& error, ScaleFormat format, double amax_floor) {
  const at::Tensor finite = rows.isfinite().all(1, /*keepdim=*/true);
  const at::Tensor least = rows.abs().amax(1, /*keepdim=*/true).clamp_min(amax_floor) / kE4m3Max;
  // A scale lies between the least and the next of its format: up to twice, 2^-7, 2^-23 above.
  const double above = format == ScaleFormat::kPowerOfTwo ? 1.0
                       : format == ScaleFormat::kBFloat16 ? 0x1p-7
                                                          : 0x1p-23;
  const at::Tensor scales = scale.to(at::kDouble).unsqueeze(1);
  const Verdict of_scales = check_values(
      "scale", scales, at::where(finite, least * (1 + above / 2), 1.0),
      at::where(finite, least * (above / 2 + 0x1p-22) + 2 * error / kE4m3Max, 0x1p-22));
  const at::Tensor values = bytes.view(at::kFloat8_e4m3fn).to(at::kDouble) * scales;
  const at::Tensor half_steps = rows.abs() / 16 + scales * 0x1p-10;
  const at::Tensor expected = at::where(finite, rows, std::numeric_limits<double>::quiet_NaN());
  return both(of_scales, check_values("value", values, expected,
                                      at::where(finite, half_steps + 2 * error, 0.0)));
}

}  // namespace indexcache
