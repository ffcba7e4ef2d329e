// What launches of CUDA kernels share.
#pragma once

#include <cuda_runtime_api.h>

#include "indexcache/kernels/cuda_error.h"

namespace indexcache {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw_cuda_error(what, cudaGetErrorString(status));
}

// After a launch: whether it could start. What goes wrong while it runs shows at a later call.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

}  // namespace indexcache
