// What programs that test kernels on a GPU share: device arrays with guard bytes, and a count of failures. CUDA's runtime and the standard
// library only. A program returns device_result(); on a machine without a GPU it returns kNoDevice, which CTest shows as skipped.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace indexcache::testing {

constexpr int kNoDevice = 77;

inline int& failures() {
  static int count = 0;
  return count;
}

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures() <= 40) std::printf("FAIL %s\n", what.c_str());
  std::fflush(stdout);
}

inline void require_cuda(int error, const std::string& what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what.c_str(), cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}

inline void finish_device(const std::string& what) {
  require_cuda(cudaGetLastError(), what + " (launch)");
  require_cuda(cudaDeviceSynchronize(), what);
}

// False where there is no GPU. Prints which one there is.
inline bool find_device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
  cudaDeviceProp properties;
  require_cuda(cudaGetDeviceProperties(&properties, 0), "device properties");
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a killed run still shows how far it came
  std::printf("device: %s\n", properties.name);
  return true;
}

inline int device_result(const char* program) {
  std::printf("%s: %s (%d failures)\n", program, failures() ? "FAILED" : "passed", failures());
  return failures() ? 1 : 0;
}

// Elements on the device between two guards, which the destructor checks. Fresh memory holds 0xA5 bytes: what a kernel leaves
// unwritten shows.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    require_cuda(cudaMalloc(&bytes_, bytes() + 2 * kGuard), "cudaMalloc");
    require_cuda(cudaMemset(bytes_, 0xA5, bytes() + 2 * kGuard), "cudaMemset");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (values.empty()) return;
    require_cuda(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() {
    std::vector<unsigned char> all(bytes() + 2 * kGuard);
    if (cudaMemcpy(all.data(), bytes_, all.size(), cudaMemcpyDeviceToHost) == cudaSuccess) {
      bool intact = true;
      for (std::size_t i = 0; i < kGuard; ++i) {
        intact &= all[i] == 0xA5 && all[all.size() - 1 - i] == 0xA5;
      }
      expect(intact, "guard bytes around a device array were written");
    }
    cudaFree(bytes_);
  }

  T* data() const { return reinterpret_cast<T*>(bytes_ + kGuard); }
  std::vector<T> copy() const {
    std::vector<T> values(count_);
    if (count_ == 0) return values;
    require_cuda(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  static constexpr std::size_t kGuard = 1024;
  std::size_t bytes() const { return count_ * sizeof(T); }

  std::size_t count_;
  unsigned char* bytes_ = nullptr;
};

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace indexcache::testing
