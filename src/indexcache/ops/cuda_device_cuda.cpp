#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/ops/cuda_device.h"

namespace indexcache {

CUstream_st* current_stream(const c10::Device& device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

int multiprocessors(const c10::Device& device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index()),
             "multiprocessors");
  return count;
}

std::string cuda_device_name(int index) {
  cudaDeviceProp properties = {};
  return cudaGetDeviceProperties(&properties, index) == cudaSuccess ? properties.name : "unknown";
}

}  // namespace indexcache
