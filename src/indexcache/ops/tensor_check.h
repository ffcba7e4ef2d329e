// The errors of ops whose tensors are not as their headers say.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace indexcache {

// Throws InputError "<where>: expected <expected>, found <dtype, shape, device>" unless `holds`.
void require_tensor(bool holds, const char* where, const std::string& expected,
                    const at::Tensor& found);

// The first byte's address is a multiple of 16, as kernels that read so many at once ask for.
bool aligned_to_16(const at::Tensor& tensor);

}  // namespace indexcache
