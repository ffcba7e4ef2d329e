// What benches of kernels on a GPU share: cold, interleaved timings, and the ceilings of the same
// run. CUDA's runtime and cuBLAS only.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace indexcache::bench {

inline void require_cuda(int error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(3);
}

template <typename T>
T* device_memory(std::size_t count) {
  T* memory = nullptr;
  require_cuda(cudaMalloc(&memory, count * sizeof(T)), "cudaMalloc");
  return memory;
}
template <typename T>
T* to_device(const std::vector<T>& values) {
  T* memory = device_memory<T>(values.size());
  require_cuda(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
               "cudaMemcpy");
  return memory;
}

// Words with the bits of `set`, and of `keep` at random.
__global__ static void fill_words(std::uint32_t* words, std::size_t count, std::uint32_t keep,
                                  std::uint32_t set) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count; i += step) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761u + 12345u;
    x ^= x >> 16, x *= 0x85EBCA6Bu, x ^= x >> 13, x *= 0xC2B2AE35u, x ^= x >> 16;
    words[i] = (x & keep) | set;
  }
}

// As bf16: magnitudes of 0.25 to 1, either sign. As e4m3 or fp32: finite, too.
inline char* random_values(std::size_t bytes) {
  auto* words = device_memory<std::uint32_t>(bytes / 4);
  fill_words<<<1024, 256>>>(words, bytes / 4, 0x80BF80BF, 0x3E803E80);
  return reinterpret_cast<char*>(words);
}

struct DeviceCase {
  std::string name;
  double flops = 0;  // that the result needs, padding not counted
  double bytes = 0;  // that are read through L2 at least
  std::function<void(cudaStream_t)> run;
  int calls =
      1;  // that run() makes; above 1 it is captured in a graph, and brings its own cold data
  std::vector<std::pair<std::string, double>> figures = {};  // of its data or result, to be shown
  std::vector<int> shared_by = {};  // so many use its result: its time for each is shown
};

// Times cases in turn, `rounds` times after one warm-up each; single calls after a write of far
// more than L2 holds.
class DeviceSuite {
 public:
  // argv: --json FILE, --rounds N, --filter TEXT
  DeviceSuite(const char* name, int argc, char** argv) : name_(name) {
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string option = argv[i];
      if (option == "--json") json_path_ = argv[i + 1];
      if (option == "--rounds") rounds_ = std::atoi(argv[i + 1]);
      if (option == "--filter") filter_ = argv[i + 1];
    }
    for (int i = 0; i < argc; ++i) command_ += std::string(i ? " " : "") + argv[i];
    require_cuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
    require_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
    require_cuda(cudaEventCreate(&end_), "cudaEventCreate");
    flush_ = device_memory<char>(kFlushBytes);
    add_ceilings();
  }

  // Whether a case of this name would be timed: for those whose inputs are dear.
  bool takes(const std::string& name) const {
    return std::strstr(name.c_str(), filter_.c_str()) != nullptr;
  }
  void add(DeviceCase c) {
    if (takes(c.name)) add_ceiling(std::move(c));
  }
  void add_ceiling(DeviceCase c) { cases_.push_back({std::move(c), {}, nullptr}); }

  void run() {
    for (Timed& t : cases_) prepare(t);
    for (int round = 0; round < rounds_; ++round) {
      for (Timed& t : cases_) t.us.push_back(time(t));
    }
    for (Timed& t : cases_) std::sort(t.us.begin(), t.us.end());
    report();
  }

 private:
  static constexpr std::size_t kFlushBytes = std::size_t{256} << 20;
  static constexpr std::size_t kCopyBytes = std::size_t{1} << 30;
  static constexpr int kMatmul = 8192;

  struct Timed {
    DeviceCase c;
    std::vector<double> us;
    cudaGraphExec_t graph;
  };

  void add_ceilings() {
    static cublasHandle_t cublas;
    if (cublasCreate(&cublas) != CUBLAS_STATUS_SUCCESS)
      require_cuda(cudaErrorUnknown, "cublasCreate");
    const std::size_t elements = std::size_t{kMatmul} * kMatmul;
    char* copy = random_values(2 * kCopyBytes);
    char* a = copy;
    char* b = a + 2 * elements;
    char* c = b + 2 * elements;
    cases_.push_back({{"ceiling: bf16 matmul 8192", 2.0 * kMatmul * kMatmul * kMatmul, 0,
                       [=](cudaStream_t stream) {
                         const float one = 1, zero = 0;
                         cublasSetStream(cublas, stream);
                         cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, kMatmul, kMatmul, kMatmul,
                                      &one, a, CUDA_R_16BF, kMatmul, b, CUDA_R_16BF, kMatmul, &zero,
                                      c, CUDA_R_16BF, kMatmul, CUBLAS_COMPUTE_32F,
                                      CUBLAS_GEMM_DEFAULT);
                       },
                       1},
                      {},
                      nullptr});
    cases_.push_back({{"ceiling: copy 1 GiB, read + write", 0, 2.0 * kCopyBytes,
                       [=](cudaStream_t stream) {
                         cudaMemcpyAsync(copy + kCopyBytes, copy, kCopyBytes,
                                         cudaMemcpyDeviceToDevice, stream);
                       },
                       1},
                      {},
                      nullptr});
  }

  void prepare(Timed& t) {
    t.c.run(stream_);
    require_cuda(cudaStreamSynchronize(stream_), t.c.name.c_str());
    if (t.c.calls == 1) return;
    cudaGraph_t graph;
    require_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    t.c.run(stream_);
    require_cuda(cudaStreamEndCapture(stream_, &graph), "capture");
    require_cuda(cudaGraphInstantiate(&t.graph, graph, 0), "graph");
  }

  double time(Timed& t) {
    require_cuda(cudaMemsetAsync(flush_, 1, kFlushBytes, stream_), "flush");
    require_cuda(cudaEventRecord(begin_, stream_), "event");
    if (t.graph) {
      require_cuda(cudaGraphLaunch(t.graph, stream_), t.c.name.c_str());
    } else {
      t.c.run(stream_);
    }
    require_cuda(cudaEventRecord(end_, stream_), "event");
    require_cuda(cudaStreamSynchronize(stream_), t.c.name.c_str());
    float ms = 0;
    require_cuda(cudaEventElapsedTime(&ms, begin_, end_), "event");
    return 1e3 * ms / t.c.calls;
  }

  void report() const {
    cudaDeviceProp device;
    require_cuda(cudaGetDeviceProperties(&device, 0), "device properties");
    std::FILE* json = json_path_.empty() ? nullptr : std::fopen(json_path_.c_str(), "w");
    if (json) {
      std::fprintf(json,
                   "{\n \"bench\": \"%s\",\n \"device\": \"%s\",\n \"commit\": \"%s\",\n "
                   "\"command\": \"%s\",\n \"rounds\": %d,\n \"cases\": [",
                   name_, device.name, INDEXCACHE_COMMIT, command_.c_str(), rounds_);
    }
    std::printf("%s on %s, median (quartiles) of %d rounds\n", name_, device.name, rounds_);
    for (std::size_t i = 0; i < cases_.size(); ++i) {
      const Timed& t = cases_[i];
      const double median = t.us[t.us.size() / 2], low = t.us[t.us.size() / 4],
                   high = t.us[t.us.size() * 3 / 4];
      const double tflops = t.c.flops / median * 1e-6, tbytes = t.c.bytes / median * 1e-6;
      std::printf("%-44s %9.1f us (%.1f-%.1f) %7.1f TFLOP/s %6.2f TB/s\n", t.c.name.c_str(), median,
                  low, high, tflops, tbytes);
      for (const auto& [figure, value] : t.c.figures)
        std::printf("%-44s   %s %.6g\n", "", figure.c_str(), value);
      for (const int users : t.c.shared_by)
        std::printf("%-44s   for each of %d: %.1f us\n", "", users, median / users);
      if (json) {
        std::fprintf(json,
                     "%s\n  {\"case\": \"%s\", \"us\": %.2f, \"us_quartiles\": [%.2f, %.2f], "
                     "\"tflops\": %.2f, \"tbytes\": %.3f",
                     i ? "," : "", t.c.name.c_str(), median, low, high, tflops, tbytes);
        for (const auto& [figure, value] : t.c.figures)
          std::fprintf(json, ", \"%s\": %.6g", figure.c_str(), value);
        for (const int users : t.c.shared_by)
          std::fprintf(json, ", \"us_for_each_of_%d\": %.2f", users, median / users);
        std::fprintf(json, "}");
      }
    }
    if (json) {
      std::fprintf(json, "\n ]\n}\n");
      std::fclose(json);
    }
  }

  const char* name_;
  std::string json_path_, filter_, command_;
  int rounds_ = 11;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  char* flush_ = nullptr;
  std::vector<Timed> cases_;
};

}  // namespace indexcache::bench
