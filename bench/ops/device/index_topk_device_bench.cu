// index_topk's Hopper kernels on the GPU, beside an fp8 matmul of cuBLASLt and a device copy timed in
// the same run as ceilings. Everything is timed in turn, round after round, over a flushed L2;
// figures are medians with quartiles.
// usage: index_topk_device_bench [--rounds N] [--json FILE] [NAME-PART]
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache::bench {
namespace {

void cuda_ok(int result, const char* what) {
  if (result == 0) return;
  std::fprintf(stderr, "index_topk_device_bench: %s: error %d\n", what, result);
  std::exit(3);
}

constexpr long kPageBytes = 64 * 132;

class Buffer {
 public:
  explicit Buffer(std::size_t size) { cuda_ok(cudaMalloc(&data_, size ? size : 16), "cudaMalloc"); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

__device__ unsigned mix(unsigned x) {
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}

// About normal: the sum of four uniforms. Which: 0 random, 1 keys ascend in length, 2 constant,
// 3 mostly zero, 4 clusters of long keys.
enum class Content { kRandom, kAscending, kConstant, kZeroPlateau, kClustered };

__device__ float length_of(Content content, long row, long rows) {
  switch (content) {
    case Content::kAscending: return 0.2f + 1.6f * static_cast<float>(row) / rows;
    case Content::kZeroPlateau: return row % 200 == 0 ? 1.0f : 0.0f;
    case Content::kClustered: return row / 1500 % 16 == 5 ? 1.5f : 0.5f;
    default: return 1.0f;
  }
}

__global__ void fill(std::uint8_t* out, long rows, IndexKeyFormat format, Content content, unsigned seed) {
  for (long i = blockIdx.x * 256L + threadIdx.x; i < rows * 128; i += gridDim.x * 256L) {
    const long at = content == Content::kConstant ? i % 128 : i;
    float sum = 0;
    for (int j = 0; j < 4; ++j) sum += mix(static_cast<unsigned>(at * 4 + j) ^ seed) * 0x1p-32f - 0.5f;
    const float value = 1.7f * sum * length_of(content, i / 128, rows);
    if (format == IndexKeyFormat::kBFloat16) {
      reinterpret_cast<unsigned short*>(out)[i] = __float_as_uint(value) >> 16;
      continue;
    }
    const float size = fabsf(value);
    int exponent = 0;
    frexpf(size, &exponent);  // size = m 2^exponent, m in [1/2, 1)
    exponent = max(exponent, -5);
    const int steps = static_cast<int>(rintf(ldexpf(size, 4 - exponent)));  // of 2^(exponent - 4)
    const int carried = steps == 16 ? exponent + 1 : exponent, digits = steps == 16 ? 8 : steps;
    const int bits = digits < 8 ? digits : (carried + 6) << 3 | (digits - 8);
    out[i] = static_cast<std::uint8_t>(bits | (value < 0 ? 0x80 : 0));
  }
}

__global__ void fill_floats(float* out, long count, float low, float high, unsigned seed) {
  for (long i = blockIdx.x * 256L + threadIdx.x; i < count; i += gridDim.x * 256L) {
    out[i] = low + (high - low) * (mix(static_cast<unsigned>(i) ^ seed) * 0x1p-32f);
  }
}

// The scales of pages whose bytes are otherwise keys.
__global__ void fill_page_scales(std::uint8_t* pages, long count) {
  for (long i = blockIdx.x * 256L + threadIdx.x; i < count * 64; i += gridDim.x * 256L) {
    auto* scales = reinterpret_cast<float*>(pages + i / 64 * kPageBytes + 64 * 128);
    scales[i % 64] = 0.01f + 0.002f * (mix(static_cast<unsigned>(i)) * 0x1p-32f);
  }
}

struct Case {
  std::string name;
  IndexKeyFormat format;
  int queries, keys, heads, top_k;
  bool causal;
  Content content;
  int tokens = 0;  // decode: tokens of a request, each request with `keys` keys in pages
};

class Running {
 public:
  explicit Running(const Case& c) : case_(c) {
    const long row = c.format == IndexKeyFormat::kE4M3 ? 128 : 256;
    q_ = std::make_unique<Buffer>(row * c.queries * c.heads);
    keys_ = std::make_unique<Buffer>(row * c.keys);
    scale_ = std::make_unique<Buffer>(4L * c.keys);
    weights_ = std::make_unique<Buffer>(4L * c.queries * c.heads);
    out_ = std::make_unique<Buffer>(4L * c.queries * c.top_k);
    fill<<<1024, 256>>>(q_->as<std::uint8_t>(), long(c.queries) * c.heads, c.format, Content::kRandom, 1);
    fill<<<1024, 256>>>(keys_->as<std::uint8_t>(), c.keys, c.format, c.content, 2);
    const bool plain = c.content != Content::kRandom;
    fill_floats<<<256, 256>>>(scale_->as<float>(), c.keys, 0.01f, plain ? 0.01f : 0.012f, 3);
    fill_floats<<<256, 256>>>(weights_->as<float>(), long(c.queries) * c.heads, plain ? 0.1f : -0.5f, 1.0f, 4);
    std::vector<int> start(c.queries, 0), end(c.queries, c.keys);
    for (int t = 0; c.causal && t < c.queries; ++t) end[t] = c.keys - c.queries + 1 + t;
    start_ = std::make_unique<Buffer>(4L * c.queries);
    end_ = std::make_unique<Buffer>(4L * c.queries);
    cuda_ok(cudaMemcpy(start_->as<int>(), start.data(), 4L * c.queries, cudaMemcpyHostToDevice), "copy");
    cuda_ok(cudaMemcpy(end_->as<int>(), end.data(), 4L * c.queries, cudaMemcpyHostToDevice), "copy");
    if (c.tokens > 0) make_pages();
    bind(row);
    capture();
  }
  ~Running() { cudaGraphExecDestroy(graph_); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  void operator()() const { cuda_ok(cudaGraphLaunch(graph_, nullptr), "cudaGraphLaunch"); }

 private:
  // Every request its own pages, in random places.
  void make_pages() {
    const long per_request = (case_.keys + 63) / 64, count = per_request * (case_.queries / case_.tokens);
    pages_ = std::make_unique<Buffer>(count * kPageBytes);
    fill<<<1024, 256>>>(pages_->as<std::uint8_t>(), count * kPageBytes / 128, case_.format, Content::kRandom, 7);
    fill_page_scales<<<256, 256>>>(pages_->as<std::uint8_t>(), count);
    std::vector<int> table(count);
    for (long i = 0; i < count; ++i) table[i] = static_cast<int>(i);
    std::mt19937 random(1);
    std::shuffle(table.begin(), table.end(), random);
    table_ = std::make_unique<Buffer>(4 * count);
    cuda_ok(cudaMemcpy(table_->as<int>(), table.data(), 4 * count, cudaMemcpyHostToDevice), "copy");
    params_.block_table = table_->as<int>();
    params_.table_stride = static_cast<int>(per_request);
    params_.page_stride = kPageBytes;
    params_.tokens_per_request = case_.tokens;
  }
  void capture() {
    cudaStream_t stream;
    cudaGraph_t graph;
    cuda_ok(cudaStreamCreate(&stream), "stream");
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    index_topk_cuda(params_, plan_, stream);
    cuda_ok(cudaStreamEndCapture(stream, &graph), "capture");
    cuda_ok(cudaGraphInstantiate(&graph_, graph, 0), "graph");
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
  void bind(long row) {
    params_.format = case_.format;
    params_.num_queries = case_.queries;
    params_.num_heads = case_.heads;
    params_.num_keys = case_.keys;
    params_.top_k = case_.top_k;
    params_.q = q_->as<void>();
    params_.keys = pages_ ? pages_->as<void>() : keys_->as<void>();
    params_.key_stride = row;
    params_.key_scale = case_.format == IndexKeyFormat::kE4M3 ? scale_->as<float>() : nullptr;
    params_.weights = weights_->as<float>();
    params_.start = start_->as<int>();
    params_.end = end_->as<int>();
    params_.out = out_->as<int>();
    int processors = 0;
    cuda_ok(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "attribute");
    plan_ = plan_index_topk(params_, processors);
    workspace_ = std::make_unique<Buffer>(plan_.workspace_bytes);
    params_.workspace = workspace_->as<void>();
    params_.workspace_bytes = plan_.workspace_bytes;
  }

  Case case_;
  IndexTopkCudaParams params_;
  IndexTopkPlan plan_;
  std::unique_ptr<Buffer> q_, keys_, scale_, weights_, start_, end_, out_, workspace_, pages_, table_;
  cudaGraphExec_t graph_ = nullptr;
};

// An e4m3 matmul n x n x n into bf16.
class Matmul {
 public:
  explicit Matmul(long n) : n_(n), a_(n * n), b_(n * n), c_(2 * n * n), workspace_(kWorkspace) {
    fill<<<1024, 256>>>(a_.as<std::uint8_t>(), n * n / 128, IndexKeyFormat::kE4M3, Content::kRandom, 5);
    fill<<<1024, 256>>>(b_.as<std::uint8_t>(), n * n / 128, IndexKeyFormat::kE4M3, Content::kRandom, 6);
    cuda_ok(cublasLtCreate(&handle_), "cublasLtCreate");
    cuda_ok(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "desc");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cuda_ok(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                           sizeof transposed), "transpose");
    cuda_ok(cublasLtMatrixLayoutCreate(&in_, CUDA_R_8F_E4M3, n, n, n), "layout");
    cuda_ok(cublasLtMatrixLayoutCreate(&result_, CUDA_R_16BF, n, n, n), "layout");
    cublasLtMatmulPreference_t preference;
    cuda_ok(cublasLtMatmulPreferenceCreate(&preference), "preference");
    const std::size_t bytes = kWorkspace;
    cuda_ok(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &bytes, sizeof bytes), "preference");
    int found = 0;
    cuda_ok(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, in_, in_, result_, result_, preference, 1,
                                           &best_, &found), "heuristic");
    cuda_ok(found == 1 ? 0 : 1, "no fp8 matmul");
  }
  void operator()() const {
    const float one = 1, zero = 0;
    cuda_ok(cublasLtMatmul(handle_, operation_, &one, a_.as<void>(), in_, b_.as<void>(), in_, &zero,
                           c_.as<void>(), result_, c_.as<void>(), result_, &best_.algo,
                           workspace_.as<void>(), kWorkspace, nullptr), "cublasLtMatmul");
  }
  double flops() const { return 2.0 * n_ * n_ * n_; }

 private:
  static constexpr std::size_t kWorkspace = 64 << 20;
  long n_;
  Buffer a_, b_, c_, workspace_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t in_ = nullptr, result_ = nullptr;
  cublasLtMatmulHeuristicResult_t best_{};
};

struct Timed {
  std::string name;
  std::function<void()> run;
  double flops = 0, bytes = 0;
  std::vector<float> milliseconds;
  float at(double share) const {
    return milliseconds[static_cast<std::size_t>(share * (milliseconds.size() - 1) + 0.5)];
  }
};

void time_in_turn(std::vector<Timed>& all, int rounds) {
  constexpr std::size_t kFlush = 256 << 20;
  const Buffer flush(kFlush);
  cudaEvent_t begin, end;
  cuda_ok(cudaEventCreate(&begin), "event");
  cuda_ok(cudaEventCreate(&end), "event");
  for (int round = -1; round < rounds; ++round) {
    for (Timed& each : all) {
      cuda_ok(cudaMemsetAsync(flush.as<void>(), round & 255, kFlush), "flush");
      cuda_ok(cudaEventRecord(begin), "event");
      each.run();
      cuda_ok(cudaEventRecord(end), "event");
      cuda_ok(cudaEventSynchronize(end), each.name.c_str());
      float elapsed = 0;
      cuda_ok(cudaEventElapsedTime(&elapsed, begin, end), "elapsed");
      if (round >= 0) each.milliseconds.push_back(elapsed);
    }
  }
  for (Timed& each : all) std::sort(each.milliseconds.begin(), each.milliseconds.end());
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto e4m3 = IndexKeyFormat::kE4M3, bf16 = IndexKeyFormat::kBFloat16;
  const auto add = [&](IndexKeyFormat f, int m, int n, int h, int k, bool causal, Content content,
                       const std::string& note) {
    all.push_back({std::string(f == e4m3 ? "fp8 " : "bf16 ") + std::to_string(m) + " x " +
                       std::to_string(n) + " H " + std::to_string(h) + " k " + std::to_string(k) + note,
                   f, m, n, h, k, causal, content});
  };
  for (const int h : {32, 64}) add(e4m3, 2048, 200704, h, 2048, false, Content::kRandom, "");
  add(e4m3, 4096, 65536, 32, 2048, false, Content::kRandom, "");
  add(e4m3, 8192, 131072, 32, 2048, false, Content::kRandom, "");
  add(e4m3, 2048, 32768, 32, 2048, false, Content::kRandom, "");
  add(e4m3, 2048, 200704, 32, 2048, true, Content::kRandom, " causal");
  add(e4m3, 2048, 200704, 32, 1, false, Content::kRandom, "");
  add(e4m3, 2048, 200704, 16, 2048, false, Content::kRandom, "");
  add(bf16, 2048, 65536, 32, 2048, false, Content::kRandom, "");
  add(e4m3, 2048, 65536, 32, 2048, false, Content::kAscending, " ascending");
  add(e4m3, 2048, 65536, 32, 2048, false, Content::kConstant, " constant");
  add(e4m3, 2048, 65536, 32, 2048, false, Content::kZeroPlateau, " zero plateau");
  add(e4m3, 2048, 65536, 32, 2048, false, Content::kClustered, " clustered");
  add(e4m3, 2048, 65536, 32, 2048, false, Content::kRandom, " random");
  const auto decode = [&](int requests, int keys, int h, int tokens) {
    all.push_back({"decode " + std::to_string(requests) + " x " + std::to_string(tokens) + " tokens, " +
                       std::to_string(keys) + " keys, H " + std::to_string(h),
                   e4m3, requests * tokens, keys, h, 2048, false, Content::kRandom, tokens});
  };
  for (const int h : {32, 64}) {
    decode(1, 200704, h, 1);
    decode(16, 131072, h, 1);
    decode(64, 65536, h, 1);
  }
  decode(16, 131072, 32, 2);
  decode(1, 4096, 32, 1);
  return all;
}

void write_json(const char* path, const std::string& device, const std::vector<Timed>& all) {
  std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) {
    std::fprintf(stderr, "index_topk_device_bench: cannot write %s\n", path);
    std::exit(3);
  }
  std::fprintf(file, "{\"device\": \"%s\", \"rounds\": %zu, \"cases\": [", device.c_str(),
               all.empty() ? 0 : all[0].milliseconds.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Timed& t = all[i];
    std::fprintf(file,
                 "%s\n  {\"name\": \"%s\", \"median_us\": %.2f, \"low_quartile_us\": %.2f, "
                 "\"high_quartile_us\": %.2f, \"tflops\": %.1f, \"tbytes_per_s\": %.3f}",
                 i ? "," : "", t.name.c_str(), t.at(.5) * 1e3, t.at(.25) * 1e3, t.at(.75) * 1e3,
                 t.flops / t.at(.5) * 1e-9, t.bytes / t.at(.5) * 1e-9);
  }
  std::fprintf(file, "\n]}\n");
  std::fclose(file);
}

int run(int rounds, const char* json, const std::string& part) {
  cudaDeviceProp device;
  cuda_ok(cudaGetDeviceProperties(&device, 0), "device");
  std::vector<Timed> all;
  const auto matmul = std::make_shared<Matmul>(8192);
  all.push_back({"cuBLASLt e4m3 matmul 8192^3", [=] { (*matmul)(); }, matmul->flops()});
  constexpr std::size_t kCopy = std::size_t{1} << 30;
  const auto from = std::make_shared<Buffer>(kCopy), to = std::make_shared<Buffer>(kCopy);
  all.push_back({"device copy 1 GiB",
                 [=] {
                   cuda_ok(cudaMemcpyAsync(to->as<void>(), from->as<void>(), kCopy,
                                           cudaMemcpyDeviceToDevice), "copy");
                 },
                 0, 2.0 * kCopy});
  for (const Case& c : cases()) {
    if (c.name.find(part) == std::string::npos) continue;
    const auto running = std::make_shared<Running>(c);
    double pairs = double(c.queries) * c.keys;
    if (c.causal) pairs -= 0.5 * c.queries * (c.queries - 1.0);
    const double key_bytes = c.tokens > 0 ? 132.0 * c.keys * (c.queries / c.tokens) : 0;
    all.push_back({c.name, [=] { (*running)(); }, 2.0 * 128 * c.heads * pairs, key_bytes});
  }
  time_in_turn(all, rounds);
  std::printf("%s, %d rounds\n", device.name, rounds);
  for (const Timed& t : all) {
    std::printf("%-48s %9.3f ms [%.3f %.3f]  %7.1f TFLOP/s  %.2f TB/s\n", t.name.c_str(), t.at(.5),
                t.at(.25), t.at(.75), t.flops / t.at(.5) * 1e-9, t.bytes / t.at(.5) * 1e-9);
  }
  if (json != nullptr) write_json(json, device.name, all);
  return 0;
}

}  // namespace
}  // namespace indexcache::bench

int main(int argc, char** argv) {
  int rounds = 11;
  const char* json = nullptr;
  std::string part;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = argv[++i];
    } else {
      part = argv[i];
    }
  }
  return indexcache::bench::run(rounds, json, part);
}
