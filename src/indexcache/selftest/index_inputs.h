// Inputs of the ops that fill fp8 caches.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "indexcache/kernels/index_key_type.h"

namespace indexcache {

// [R, 128] fp32 that bf16 holds, of sizes from 2^-10 to 2^10; every tenth row is zero, and every tenth
// has a NaN.
at::Tensor index_rows(std::int64_t rows, const at::Generator& generator);

// [200, 64]: of each position 32 cosines, then their sines.
at::Tensor angle_table();

// [R, 1]: what fp32 may be off by in a row's rotation. RoPE is 3 operations on two coordinates, the
// Hadamard rotation 7 sums and a product over all of them.
at::Tensor rotation_error(const at::Tensor& rows, const IndexKeyType& type);

}  // namespace indexcache
