// What storing a matrix in FP8 blocks leaves of it.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

// matrix [..., rows, columns] fp32, rows and columns multiples of 128 -> the values that an F8_E4M3
// folder with 128 x 128 blocks gives back: the same as checkpoint/writer.h's quantize_fp8_blocks,
// read again.
at::Tensor through_fp8(const at::Tensor& matrix);

}  // namespace indexcache
