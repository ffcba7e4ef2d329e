// What the ops return without their values: shapes, dtypes and devices, for torch.compile and export.
#pragma once

#include <torch/library.h>

namespace indexcache::torch_ops {

using at::Tensor;

// The Meta key's kernels of all ops of the library.
void implement_fake(torch::Library& library);

}  // namespace indexcache::torch_ops
