// RMSNorm, spec section 2.1.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

// y = x / sqrt(mean(x^2 over the last axis) + eps) * weight, the mean in fp32. x [..., n], weight
// [n]. Differentiable.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace indexcache
