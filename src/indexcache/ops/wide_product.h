// Batched matrix products whose results keep the precision of their accumulation.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

// fp32 for fp32 and bf16, double for double: the dtype that sums and softmaxes are kept in.
at::ScalarType wide_dtype(const at::Tensor& x);

// a [batch, m, k] x b [batch, k, n] -> [batch, m, n] in wide_dtype(a). On CUDA a bf16 product is
// never rounded to bf16; the CPU's is.
at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b);

}  // namespace indexcache
