// Errors of CUDA calls, thrown from host code so that nvcc need not read the error room's headers.
#pragma once

namespace indexcache {

// DeviceError: `what` failed, CUDA's own words are `reason`.
[[noreturn]] void throw_cuda_error(const char* what, const char* reason);

}  // namespace indexcache
