// Inputs of index_topk's device tests, and running them on the GPU between guard bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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
    if (size_ > 0)
      cuda_ok(cudaMemcpy(data(), values.data(), size_, cudaMemcpyHostToDevice), "copy in");
  }
  ~DeviceBytes() { cudaFree(base_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void* data() const { return static_cast<std::uint8_t*>(base_) + kGuard; }
  std::size_t size() const { return size_; }
  template <typename T>
  std::vector<T> copy() const {
    std::vector<T> values(size_ / sizeof(T));
    if (size_ > 0)
      cuda_ok(cudaMemcpy(values.data(), data(), size_, cudaMemcpyDeviceToHost), "copy out");
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
  std::vector<std::int32_t> seeds;  // [M, num_seeds] or empty
  bool lattice = false;             // scores are exact in fp32
  // Decode: groups of `tokens` queries are requests, each with `keys` keys of its own in k and scale.
  int tokens = 0;
  bool paged = false;
  std::int64_t page_stride = 64 * 132;

  int requests() const { return tokens > 0 ? queries / tokens : 1; }
  int request_of(std::int64_t query) const {
    return tokens > 0 ? static_cast<int>(query / tokens) : 0;
  }

  std::vector<std::uint8_t> q_bytes, k_bytes;
  void encode() {
    q_bytes = bytes_of(q);
    k_bytes = bytes_of(k);
  }
  std::vector<std::uint8_t> bytes_of(const std::vector<float>& values) const {
    std::vector<std::uint8_t> bytes;
    if (format == IndexKeyFormat::kE4M3) {
      bytes.resize(values.size());
      in_threads(64, [&](std::int64_t part) {
        const std::size_t step = values.size() / 64 + 1;
        for (std::size_t i = part * step; i < std::min(values.size(), (part + 1) * step); ++i) {
          bytes[i] = to_e4m3(values[i]);
        }
      });
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
    p.tokens_per_request = tokens;
    return p;
  }
  // The same with the keys of the query's request: for the reference.
  IndexTopkCudaParams host(std::int64_t query) const {
    IndexTopkCudaParams p = host();
    const std::int64_t first = std::int64_t{request_of(query)} * keys;
    p.keys = k_bytes.data() + first * p.key_stride;
    if (p.key_scale != nullptr) p.key_scale += first;
    return p;
  }
};

// The keys of a problem in pages of 64, in random places among pages of NaN; a table entry that no
// range needs points far outside.
class Pages {
 public:
  explicit Pages(const Problem& p)
      : per_request_((p.keys + 63) / 64),
        count_(per_request_ * p.requests() + 3),
        pool_(static_cast<std::size_t>(count_) * p.page_stride) {
    cuda_ok(cudaMemset(pool_.data(), 0xFF, pool_.size()), "cudaMemset");
    std::vector<std::int32_t> places(count_);
    for (int i = 0; i < count_; ++i) places[i] = i;
    std::mt19937 random(99);
    for (int i = 0; i + 1 < count_; ++i) std::swap(places[i], places[i + random() % (count_ - i)]);
    std::vector<std::int32_t> table(static_cast<std::size_t>(per_request_) * p.requests());
    for (int request = 0; request < p.requests(); ++request) {
      int most = 0;
      for (int t = 0; t < p.queries; ++t) {
        if (p.request_of(t) == request) most = std::max(most, p.end[t]);
      }
      for (int page = 0; page < per_request_; ++page) {
        const int entry = request * per_request_ + page;
        table[entry] = page * 64 < most ? places[entry] : 0x7FFFFFFF;
        if (page * 64 < most) fill(p, request, page, places[entry]);
      }
    }
    table_ = std::make_unique<DeviceBytes>(table);
  }
  void bind(IndexTopkCudaParams& params, const Problem& p) const {
    params.keys = pool_.data();
    params.block_table = static_cast<const std::int32_t*>(table_->data());
    params.table_stride = per_request_;
    params.page_stride = p.page_stride;
  }

 private:
  void fill(const Problem& p, int request, int page, int place) {
    std::vector<std::uint8_t> bytes(64 * 132, 0xFF);
    const std::int64_t first = std::int64_t{request} * p.keys + page * 64;
    const int held = std::min(64, p.keys - page * 64);
    std::memcpy(bytes.data(), &p.k_bytes[first * 128], held * 128);
    std::memcpy(bytes.data() + 64 * 128, &p.scale[first], held * 4);
    auto* to = static_cast<std::uint8_t*>(pool_.data()) + place * p.page_stride;
    cuda_ok(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "page");
  }

  int per_request_, count_;
  DeviceBytes pool_;
  std::unique_ptr<DeviceBytes> table_;
};

// A problem on the device; run() gives the result and, in a debug launch, the scores. Planned for all
// multiprocessors, among which few queries are shared out in pieces; or, where it says so, for one or
// two, so that blocks have one whole group after the other.
enum class Blocks { kAll, kOne, kTwo };
class DeviceProblem {
 public:
  explicit DeviceProblem(const Problem& problem, Blocks blocks = Blocks::kAll)
      : params_(problem.host()),
        q_(problem.q_bytes),
        keys_(problem.k_bytes),
        scale_(problem.scale),
        weights_(problem.weights),
        start_(problem.start),
        end_(problem.end),
        seeds_(problem.seeds),
        out_(sizeof(std::int32_t) * problem.queries * problem.top_k) {
    params_.keys = keys_.data();
    if (problem.paged) {
      pages_ = std::make_unique<Pages>(problem);
      pages_->bind(params_, problem);
    }
    int processors = blocks == Blocks::kOne ? 1 : 2;
    if (blocks == Blocks::kAll)
      cuda_ok(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "attribute");
    plan_ = plan_index_topk(params_, processors);
    workspace_ = std::make_unique<DeviceBytes>(plan_.workspace_bytes);
    counters_ = std::make_unique<DeviceBytes>(std::vector<std::uint8_t>(plan_.counter_bytes));
    params_.q = q_.data();
    if (params_.key_scale != nullptr) params_.key_scale = static_cast<const float*>(scale_.data());
    params_.weights = static_cast<const float*>(weights_.data());
    params_.start = static_cast<const std::int32_t*>(start_.data());
    params_.end = static_cast<const std::int32_t*>(end_.data());
    if (!problem.seeds.empty()) {
      params_.seeds = static_cast<const std::int32_t*>(seeds_.data());
      params_.num_seeds = static_cast<std::int32_t>(problem.seeds.size() / problem.queries);
      params_.seed_stride = params_.num_seeds;
    }
    params_.out = static_cast<std::int32_t*>(out_.data());
    params_.workspace = workspace_->data();
    params_.workspace_bytes = plan_.workspace_bytes;
    params_.counters = counters_->data();
  }

  // The result; scores: [M, N], of a debug launch; list_counts: [M, 2].
  std::vector<std::int32_t> run(std::vector<float>* scores = nullptr,
                                std::vector<std::int32_t>* list_counts = nullptr) {
    cuda_ok(cudaMemset(out_.data(), 0x77, out_.size()), "cudaMemset");
    IndexTopkCudaParams p = params_;
    std::unique_ptr<DeviceBytes> dump, counts;
    if (scores != nullptr) {
      dump = std::make_unique<DeviceBytes>(std::size_t{4} * p.num_queries * p.num_keys);
      p.scores = static_cast<float*>(dump->data());
    }
    if (list_counts != nullptr) {
      counts = std::make_unique<DeviceBytes>(std::vector<std::int32_t>(2 * p.num_queries));
      p.list_counts = static_cast<std::int32_t*>(counts->data());
    }
    index_topk_cuda(p, plan_, nullptr);
    // Other streams may have work that does not end yet.
    cuda_ok(cudaStreamSynchronize(nullptr), "index_topk");
    if (scores != nullptr) {
      *scores = dump->copy<float>();
      intact_ = intact_ && dump->intact();
    }
    if (list_counts != nullptr) *list_counts = counts->copy<std::int32_t>();
    intact_ = intact_ && out_.intact() && workspace_->intact() && counters_->intact();
    return out_.copy<std::int32_t>();
  }
  // From now on with the workspace and the counters of another, which needs no less.
  void use_memory_of(const DeviceProblem& other) {
    if (other.plan_.workspace_bytes < plan_.workspace_bytes)
      cuda_ok(cudaErrorInvalidValue, "memory");
    params_.workspace = other.params_.workspace;
    params_.workspace_bytes = other.params_.workspace_bytes;
    params_.counters = other.params_.counters;
  }
  bool intact() const { return intact_; }

 private:
  IndexTopkCudaParams params_;
  IndexTopkPlan plan_;
  DeviceBytes q_, keys_, scale_, weights_, start_, end_, seeds_, out_;
  std::unique_ptr<DeviceBytes> workspace_, counters_;
  std::unique_ptr<Pages> pages_;
  bool intact_ = true;
};

}  // namespace indexcache::testing
