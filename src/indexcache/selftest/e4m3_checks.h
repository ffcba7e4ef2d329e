// e4m3 blocks with their scales, as index_q and the appends make them.
#pragma once

#include <ATen/core/Tensor.h>

#include "indexcache/kernels/e4m3_block.h"
#include "indexcache/selftest/checks.h"

namespace indexcache {

// bytes [R, 128] uint8 and scale [R] fp32 against rows [R, 128] in double, each known up to error [R, 1]:
// every value within half a step of its own and the error, every scale within its format's rounding; rows
// that are not finite NaN throughout with scale 1.
Verdict check_e4m3_rows(const at::Tensor& bytes, const at::Tensor& scale, const at::Tensor& rows,
                        const at::Tensor& error, ScaleFormat format, double amax_floor);

}  // namespace indexcache
