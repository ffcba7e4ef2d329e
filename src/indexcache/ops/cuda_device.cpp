#include "indexcache/ops/cuda_device.h"

namespace indexcache {

std::string cuda_device_name(int index);  // where CUDA's headers are: cuda_device_cuda.cpp

std::string device_name([[maybe_unused]] const c10::Device& device) {
#ifdef INDEXCACHE_CUDA
  if (device.is_cuda()) return cuda_device_name(device.has_index() ? device.index() : 0);
#endif
  return {};
}

}  // namespace indexcache
