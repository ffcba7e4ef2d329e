#include "indexcache/ops/tensor_check.h"

#include <c10/util/StringUtil.h>

#include "indexcache/base/error.h"

namespace indexcache {

void require_tensor(bool holds, const char* where, const std::string& expected,
                    const at::Tensor& found) {
  if (holds) return;
  throw expectation_error(
      where, expected, c10::str(found.scalar_type(), " ", found.sizes(), " on ", found.device()));
}

bool aligned_to_16(const at::Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

}  // namespace indexcache
