#include "indexcache/kernels/cuda_error.h"

#include "indexcache/base/error.h"

namespace indexcache {

void throw_cuda_error(const char* what, const char* reason) {
  throw device_error("{}: CUDA says: {}", what, reason);
}

}  // namespace indexcache
