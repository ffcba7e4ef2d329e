#include "indexcache/ops/wide_product.h"

#include <ATen/ops/bmm.h>

namespace indexcache {

at::ScalarType wide_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_cuda() && a.scalar_type() == at::kBFloat16) return at::bmm(a, b, at::kFloat);
  return at::bmm(a, b).to(wide_dtype(a));
}

}  // namespace indexcache
