// The fused Hopper kernels on tensors' memory. In builds with CUDA alone.
#pragma once

#include <ATen/core/Tensor.h>

#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache {

// Cuts the call for `device`, takes the workspace from libtorch's caching allocator and enqueues on the
// current stream. params.out and .workspace are ignored. Returns [M, k] int32.
at::Tensor index_topk_fused(IndexTopkCudaParams params, const c10::Device& device);

}  // namespace indexcache
