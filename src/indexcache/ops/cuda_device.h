// What the kernels and the records of measurements ask of a device. Without CUDA's headers.
#pragma once

#include <c10/core/Device.h>

#include <string>

struct CUstream_st;  // cudaStream_t

namespace indexcache {

// The stream that libtorch's own kernels would run on. In builds with CUDA alone.
CUstream_st* current_stream(const c10::Device& device);

// How many of them the device has. In builds with CUDA alone.
int multiprocessors(const c10::Device& device);

// As its driver names it ("NVIDIA H100 80GB HBM3"); of the CPU, empty.
std::string device_name(const c10::Device& device);

}  // namespace indexcache
