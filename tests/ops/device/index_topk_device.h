// Inputs of index_topk's device tests, and running them on the GPU between guard bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache::testing {

inline void cuda_ok(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(result));
  std::exit(3);
}

// Device memory between two guards of 0xA5.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size) : size_(size) {
    cuda_ok(cudaMalloc(&base_, size + 2 * kGuard), "cudaMalloc");
    cuda_ok(cudaMemset(base_, 0xA5, size + 2 * kGuard), "cudaMemset");
  }
  template <typename T>
  explicit DeviceBytes(const std::vector<T>& values) : DeviceBytes(values.size() * sizeof(T)) {
    if (size_ > 0) cuda_ok(cudaMemcpy(data(), values.data(), size_, cudaMemcpyHostToDevice), "copy in");
  }
  ~DeviceBytes() { cudaFree(base_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void* data() const { return static_cast<std::uint8_t*>(base_) + kGuard; }
  std::size_t size() const { return size_; }
  template <typename T>
  std::vector<T> copy() const {
    std::vector<T> values(size_ / sizeof(T));
    if (size_ > 0) cuda_ok(cudaMemcpy(values.data(), data(), size_, cudaMemcpyDeviceToHost), "copy out");
    return values;
  }
  bool intact() const {
    std::vector<std::uint8_t> guards(2 * kGuard);
    cuda_ok(cudaMemcpy(guards.data(), base_, kGuard, cudaMemcpyDeviceToHost), "guard");
    cuda_ok(cudaMemcpy(guards.data() + kGuard, static_cast<std::uint8_t*>(base_) + kGuard + size_,
                       kGuard, cudaMemcpyDeviceToHost),
            "guard");
    for (const std::uint8_t byte : guards) {
      if (byte != 0xA5) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 4096;
  std::size_t size_;
  void* base_ = nullptr;
};

inline std::uint8_t to_e4m3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

inline void in_threads(std::int64_t count, const std::function<void(std::int64_t)>& body) {
  const int workers = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int worker = 0; worker < workers; ++worker) {
    threads.emplace_back([=, &body] {
      for (std::int64_t i = worker; i < count; i += workers) body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A problem on the host, in values; encode() makes the bytes of its format.
struct Problem {
  std::string name;
  IndexKeyFormat format = IndexKeyFormat::kE4M3;
  int queries = 0, heads = 0, keys = 0, top_k = 0;
  std::vector<float> q, k, scale, weights;  // [M, H, 128], [N, 128], [N], [M, H]
  std::vector<std::int32_t> start, end;
  bool lattice = false;  // scores are exact in fp32

  std::vector<std::uint8_t> q_bytes, k_bytes;
  void encode() {
    q_bytes = bytes_of(q);
    k_bytes = bytes_of(k);
  }
  std::vector<std::uint8_t> bytes_of(const std::vector<float>& values) const {
    std::vector<std::uint8_t> bytes;
    if (format == IndexKeyFormat::kE4M3) {
      for (const float value : values) bytes.push_back(to_e4m3(value));
      return bytes;
    }
    bytes.resize(values.size() * 2);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const __nv_bfloat16 rounded = __float2bfloat16(values[i]);
      std::memcpy(&bytes[2 * i], &rounded, 2);
    }
    return bytes;
  }
  IndexTopkCudaParams host() const {
    IndexTopkCudaParams p;
    p.format = format;
    p.num_queries = queries;
    p.num_heads = heads;
    p.num_keys = keys;
    p.top_k = top_k;
    p.q = q_bytes.data();
    p.keys = k_bytes.data();
    p.key_stride = format == IndexKeyFormat::kE4M3 ? 128 : 256;
    p.key_scale = format == IndexKeyFormat::kE4M3 ? scale.data() : nullptr;
    p.weights = weights.data();
    p.start = start.data();
    p.end = end.data();
    return p;
  }
};

// A problem on the device; run() gives the result and, in a debug launch, the scores.
class DeviceProblem {
 public:
  explicit DeviceProblem(const Problem& problem)
      : params_(problem.host()),
        q_(problem.q_bytes),
        keys_(problem.k_bytes),
        scale_(problem.scale),
        weights_(problem.weights),
        start_(problem.start),
        end_(problem.end),
        out_(sizeof(std::int32_t) * problem.queries * problem.top_k) {
    int processors = 0;
    cuda_ok(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "attribute");
    plan_ = plan_index_topk(params_, processors);
    workspace_ = std::make_unique<DeviceBytes>(plan_.workspace_bytes);
    params_.q = q_.data();
    params_.keys = keys_.data();
    if (params_.key_scale != nullptr) params_.key_scale = static_cast<const float*>(scale_.data());
    params_.weights = static_cast<const float*>(weights_.data());
    params_.start = static_cast<const std::int32_t*>(start_.data());
    params_.end = static_cast<const std::int32_t*>(end_.data());
    params_.out = static_cast<std::int32_t*>(out_.data());
    params_.workspace = workspace_->data();
    params_.workspace_bytes = plan_.workspace_bytes;
  }

  std::vector<std::int32_t> run(std::vector<float>* scores = nullptr) {
    cuda_ok(cudaMemset(out_.data(), 0x77, out_.size()), "cudaMemset");
    IndexTopkCudaParams p = params_;
    std::unique_ptr<DeviceBytes> dump;
    if (scores != nullptr) {
      dump = std::make_unique<DeviceBytes>(std::size_t{4} * p.num_queries * p.num_keys);
      p.scores = static_cast<float*>(dump->data());
    }
    index_topk_cuda(p, plan_, nullptr);
    cuda_ok(cudaDeviceSynchronize(), "index_topk");
    if (scores != nullptr) {
      *scores = dump->copy<float>();
      intact_ = intact_ && dump->intact();
    }
    intact_ = intact_ && out_.intact() && workspace_->intact();
    return out_.copy<std::int32_t>();
  }
  bool intact() const { return intact_; }

 private:
  IndexTopkCudaParams params_;
  IndexTopkPlan plan_;
  DeviceBytes q_, keys_, scale_, weights_, start_, end_, out_;
  std::unique_ptr<DeviceBytes> workspace_;
  bool intact_ = true;
};

}  // namespace indexcache::testing
