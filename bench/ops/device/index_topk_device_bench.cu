// index_topk's Hopper kernels on a GPU: the cases of prefill, decode in graphs over rotating caches,
// keys made to be hard for the selection, and a model's own.
// usage: index_topk_device_bench [--json FILE] [--rounds N] [--filter TEXT] [--inputs FILE]
//
// FILE is what `indexcache trace --index-inputs LAYERS` wrote: its last queries over all its keys.
// Beside prefill times stand how many keys the lists of candidates took and how often one overflowed,
// from a launch that counts. A model's queries are timed without seeds and with the sets of its own layer
// and of the three before as seeds.
#include <cublasLt.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "device_harness.h"
#include "indexcache/kernels/e4m3.h"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"
#include "ops/device/trace_file.h"

// Kernels that only compute the scores, timed on the same tensors where an object that defines them is
// linked in: scores [M, stride] fp32, 32 or 64 heads. Decode: keys in pages of 64, a row of the table a
// request, a length a query; schedule is room for 1024 integers.
extern "C" {
__attribute__((weak)) void index_scores_prefill_peer(const void* q, const void* keys,
                                                     const float* key_scale, const float* weights,
                                                     const int* start, const int* end, int queries,
                                                     int num_keys, int heads, float* scores,
                                                     int stride, cudaStream_t stream);
__attribute__((weak)) void index_scores_decode_peer(
    const void* q, const void* pages, long page_stride, long num_pages, const int* table,
    int table_stride, const float* weights, const int* lengths, int requests, int tokens, int heads,
    float* scores, int stride, int* schedule, cudaStream_t stream);
// A selection from such scores, row i of length lengths[i], in any order: timed after them.
__attribute__((weak)) void index_select_peer(const float* scores, int stride, const int* lengths,
                                             int queries, int top_k, int* out, cudaStream_t stream);
}

namespace indexcache::bench {
namespace {

constexpr long kPageBytes = 64 * 132;
constexpr int kTopK = 2048;

__device__ unsigned mix(unsigned x) {
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}

// Values are about normal: the sum of four uniforms. Keys may ascend in length, be all the same, be
// zero but for a few, or one of 16 may be long, in stretches of `stretch` keys.
enum class Kind { kRandom, kAscending, kConstant, kZeroPlateau, kClustered };
struct Content {
  Kind kind = Kind::kRandom;
  int stretch = 0;
};

__device__ float length_of(Content content, long row, long rows) {
  switch (content.kind) {
    case Kind::kAscending:
      return 0.2f + 1.6f * static_cast<float>(row) / rows;
    case Kind::kZeroPlateau:
      return row % 200 == 0 ? 1.0f : 0.0f;
    case Kind::kClustered:
      return row / content.stretch % 16 == 5 ? 1.5f : 0.5f;
    default:
      return 1.0f;
  }
}

__global__ void fill(std::uint8_t* out, long rows, IndexKeyFormat format, Content content,
                     unsigned seed) {
  for (long i = blockIdx.x * 256L + threadIdx.x; i < rows * 128; i += gridDim.x * 256L) {
    const long at = content.kind == Kind::kConstant ? i % 128 : i;
    float sum = 0;
    for (int j = 0; j < 4; ++j)
      sum += mix(static_cast<unsigned>(at * 4 + j) ^ seed) * 0x1p-32f - 0.5f;
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
__global__ void fill_page_scales(std::uint8_t* pages, long count, float spread) {
  for (long i = blockIdx.x * 256L + threadIdx.x; i < count * 64; i += gridDim.x * 256L) {
    auto* scales = reinterpret_cast<float*>(pages + i / 64 * kPageBytes + 64 * 128);
    scales[i % 64] = 0.01f + spread * (mix(static_cast<unsigned>(i)) * 0x1p-32f);
  }
}

std::string describe(IndexKeyFormat format, int queries, int keys, int heads) {
  return std::string(format == IndexKeyFormat::kE4M3 ? "fp8 " : "bf16 ") + std::to_string(queries) +
         " x " + std::to_string(keys) + " H " + std::to_string(heads);
}

int processors() {
  int count = 0;
  require_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "attribute");
  return count;
}

float* random_floats(long count, float low, float high, unsigned seed) {
  float* floats = device_memory<float>(count);
  fill_floats<<<256, 256>>>(floats, count, low, high, seed);
  return floats;
}

std::uint8_t* random_rows(long rows, IndexKeyFormat format, Content content, unsigned seed) {
  auto* bytes = device_memory<std::uint8_t>(rows * (format == IndexKeyFormat::kE4M3 ? 128 : 256));
  fill<<<1024, 256>>>(bytes, rows, format, content, seed);
  return bytes;
}

int scores_stride(int keys) { return (keys + 256 + 255) / 256 * 256; }

void add_prefill_peer(DeviceSuite& suite, const std::string& name, const IndexTopkCudaParams& p,
                      double flops) {
  const bool takes = p.format == IndexKeyFormat::kE4M3 && p.num_heads % 32 == 0;
  if (!index_scores_prefill_peer || !takes) return;
  const int stride = scores_stride(p.num_keys);
  auto* scores = device_memory<float>(long{p.num_queries} * stride);
  const int* start = to_device(std::vector<int>(p.num_queries, 0));
  const auto score = [=](cudaStream_t stream) {
    index_scores_prefill_peer(p.q, p.keys, p.key_scale, p.weights, start, p.end, p.num_queries,
                              p.num_keys, p.num_heads, scores, stride, stream);
  };
  suite.add_ceiling({"peer's scores, " + name, flops, 0, score});
  if (!index_select_peer) return;
  int* out = device_memory<int>(long{p.num_queries} * p.top_k);
  suite.add_ceiling({"peers' scores and selection, " + name, flops, 0, [=](cudaStream_t stream) {
                       score(stream);
                       index_select_peer(scores, stride, p.end, p.num_queries, p.top_k, out,
                                         stream);
                     }});
}

// What the lists took: a launch that counts.
std::vector<std::pair<std::string, double>> list_figures(IndexTopkCudaParams p,
                                                         const IndexTopkPlan& plan) {
  std::vector<std::int32_t> counts(2 * p.num_queries);
  p.list_counts = to_device(counts);
  index_topk_cuda(p, plan, nullptr);
  require_cuda(cudaMemcpy(counts.data(), p.list_counts, counts.size() * 4, cudaMemcpyDeviceToHost),
               "counts of the lists");
  require_cuda(cudaFree(p.list_counts), "cudaFree");
  double total = 0, most = 0, overflows = 0;
  for (std::size_t i = 0; i < counts.size(); i += 2) {
    total += counts[i];
    most = std::max<double>(most, counts[i]);
    overflows += counts[i + 1];
  }
  return {{"listed keys a query", total / p.num_queries},
          {"most listed keys", most},
          {"overflows", overflows}};
}

// Memory stays with the process: every case lives until its end.
void plan_and_bind(IndexTopkCudaParams& p, IndexTopkPlan& plan) {
  plan = plan_index_topk(p, processors());
  p.workspace = device_memory<char>(plan.workspace_bytes);
  p.workspace_bytes = plan.workspace_bytes;
  p.counters = device_memory<char>(plan.counter_bytes);
  require_cuda(cudaMemset(p.counters, 0, plan.counter_bytes), "counters");
  p.out = device_memory<std::int32_t>(long{p.num_queries} * p.top_k);
}

void add_prefill(DeviceSuite& suite, IndexKeyFormat format, int queries, int keys, int heads,
                 Content content = {}, const std::string& note = "", int top_k = kTopK) {
  if (!suite.takes(describe(format, queries, keys, heads) + note)) return;
  IndexTopkCudaParams p;
  IndexTopkPlan plan;
  const bool plain = content.kind != Kind::kRandom;
  p.format = format;
  p.num_queries = queries, p.num_heads = heads, p.num_keys = keys, p.top_k = top_k;
  p.q = random_rows(long{queries} * heads, format, {}, 1);
  p.keys = random_rows(keys, format, content, 2);
  p.key_stride = format == IndexKeyFormat::kE4M3 ? 128 : 256;
  if (format == IndexKeyFormat::kE4M3)
    p.key_scale = random_floats(keys, 0.01f, plain ? 0.01f : 0.012f, 3);
  p.weights = random_floats(long{queries} * heads, plain ? 0.1f : -0.5f, 1.0f, 4);
  p.end = to_device(std::vector<std::int32_t>(queries, keys));
  plan_and_bind(p, plan);
  const std::string name = describe(format, queries, keys, heads) + note;
  const double flops = 256.0 * heads * queries * keys;
  suite.add({name, flops, 0, [=](cudaStream_t stream) { index_topk_cuda(p, plan, stream); }, 1,
             list_figures(p, plan)});
  if (note.empty()) add_prefill_peer(suite, name, p, flops);
}

// The queries of a group of eight: of their own, or all the same as the first, as neighbours would be if
// they looked for the same keys.
enum class Neighbours { kIndependent, kAlike };

// The last of eight neighbours get the first's rows of so many bytes.
void make_alike(const void* rows, int queries, long bytes) {
  auto* base = static_cast<char*>(const_cast<void*>(rows));
  for (int i = 0; i < queries; ++i) {
    if (i % 8 == 0) continue;
    require_cuda(
        cudaMemcpy(base + i * bytes, base + i / 8 * 8 * bytes, bytes, cudaMemcpyDeviceToDevice),
        "cudaMemcpy");
  }
}

// Seeds of k keys a query, of which a share is of its true set, the rest anywhere in the range; of
// queries that are alike the same. Beside them the call without.
void add_seeded(DeviceSuite& suite, int queries, int keys, Neighbours neighbours) {
  const std::string name = describe(IndexKeyFormat::kE4M3, queries, keys, 32) +
                           (neighbours == Neighbours::kAlike ? " alike" : "") + ", ";
  if (!suite.takes(name + "seeds")) return;
  IndexTopkCudaParams p;
  IndexTopkPlan plan;
  p.num_queries = queries, p.num_heads = 32, p.num_keys = keys, p.top_k = kTopK;
  p.q = random_rows(long{queries} * 32, p.format, {}, 1);
  p.keys = random_rows(keys, p.format, {}, 2);
  p.key_stride = 128;
  p.key_scale = random_floats(keys, 0.01f, 0.012f, 3);
  p.weights = random_floats(long{queries} * 32, -0.5f, 1.0f, 4);
  if (neighbours == Neighbours::kAlike) {
    make_alike(p.q, queries, 32 * 128);
    make_alike(p.weights, queries, 32 * sizeof(float));
  }
  p.end = to_device(std::vector<std::int32_t>(queries, keys));
  plan_and_bind(p, plan);
  const double flops = 256.0 * 32 * queries * keys;
  const auto add = [&](const std::string& note) {
    suite.add({name + note, flops, 0,
               [=](cudaStream_t stream) { index_topk_cuda(p, plan, stream); }, 1,
               list_figures(p, plan)});
  };
  add("seeds none");
  std::vector<std::int32_t> best(std::size_t(queries) * kTopK);
  require_cuda(cudaMemcpy(best.data(), p.out, best.size() * 4, cudaMemcpyDeviceToHost), "sets");
  p.num_seeds = kTopK, p.seed_stride = kTopK;
  for (const int percent : {0, 50, 80, 95, 100}) {
    std::vector<std::int32_t> seeds(best.size());
    std::mt19937 random(percent);
    for (int query = 0; query < queries; ++query) {
      if (neighbours == Neighbours::kAlike) random.seed(percent + 1000 * (query / 8));
      for (int i = 0; i < kTopK; ++i) {
        const bool kept = static_cast<int>(random() % 100) < percent;
        const auto any = static_cast<std::int32_t>(random() % keys);
        const std::size_t at = std::size_t(query) * kTopK + i;
        seeds[at] = kept ? best[at] : any;
      }
    }
    p.seeds = to_device(seeds);
    add("seeds of which " + std::to_string(percent) + " % are right");
  }
}

// Rows of 128 as e4m3, each by its own scale: its largest magnitude becomes e4m3's.
struct QuantisedRows {
  std::vector<std::uint8_t> bytes;
  std::vector<float> scales;
};
QuantisedRows quantise(const std::vector<float>& values) {
  QuantisedRows rows{std::vector<std::uint8_t>(values.size()),
                     std::vector<float>(values.size() / 128)};
  for (std::size_t row = 0; row < rows.scales.size(); ++row) {
    float largest = 1e-12f;
    for (int i = 0; i < 128; ++i) largest = std::max(largest, std::fabs(values[row * 128 + i]));
    rows.scales[row] = largest / kE4m3Max;
    for (int i = 0; i < 128; ++i)
      rows.bytes[row * 128 + i] = nearest_e4m3(values[row * 128 + i] / rows.scales[row]);
  }
  return rows;
}

// The last queries of a model's context, each over the keys up to its own; beside it random values
// of the same shape.
void add_real(DeviceSuite& suite, const std::string& path) {
  constexpr std::int32_t kQueries = 4096;
  TraceFile file(path);
  for (const int layer : file.layers("index_q")) {
    IndexTopkCudaParams p;
    p.num_queries = kQueries;
    p.num_heads = static_cast<std::int32_t>(file.shape("index_q", layer)[1]);
    p.num_keys = static_cast<std::int32_t>(file.shape("index_keys", layer)[0]);
    p.top_k = static_cast<std::int32_t>(file.shape("index_set", layer)[1]);
    p.key_stride = 128;
    const auto q = quantise(file.last_rows<float>("index_q", layer, kQueries));
    const auto keys = quantise(file.last_rows<float>("index_keys", layer, p.num_keys));
    auto weights = file.last_rows<float>("index_weights", layer, kQueries);
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] *= q.scales[i];
    std::vector<std::int32_t> end(kQueries);
    std::iota(end.begin(), end.end(), p.num_keys - kQueries + 1);
    p.q = to_device(q.bytes), p.weights = to_device(weights);
    p.keys = to_device(keys.bytes), p.key_scale = to_device(keys.scales);
    p.end = to_device(end);
    const double flops =
        256.0 * p.num_heads * kQueries * (p.num_keys - static_cast<double>(kQueries) / 2);
    const auto add = [&](const std::string& note) {
      IndexTopkPlan plan;
      plan_and_bind(p, plan);
      const auto call = [=](cudaStream_t stream) { index_topk_cuda(p, plan, stream); };
      suite.add({describe(p.format, kQueries, p.num_keys, p.num_heads) + " k " +
                     std::to_string(p.top_k) + note + ", layer " + std::to_string(layer),
                 flops, 0, call, 1, list_figures(p, plan)});
    };
    add(" model's");
    for (const int other : file.layers("index_set")) {
      if (other > layer || other < layer - 3) continue;
      const auto seeds = file.last_rows<std::int32_t>("index_set", other, kQueries);
      IndexTopkCudaParams unseeded = p;
      p.seeds = to_device(seeds);
      p.num_seeds = static_cast<std::int32_t>(seeds.size() / kQueries), p.seed_stride = p.num_seeds;
      add(" model's, seeds of layer " + std::to_string(other));
      p = unseeded;
    }
    p.q = random_rows(long{kQueries} * p.num_heads, p.format, {}, 1);
    p.keys = random_rows(p.num_keys, p.format, {}, 2);
    p.key_scale = random_floats(p.num_keys, 0.01f, 0.012f, 3);
    p.weights = random_floats(long{kQueries} * p.num_heads, -0.5f, 1.0f, 4);
    add(" random");
  }
}

// Calls over so many sets of pages that none is in L2 when its turn comes. Pages of hard keys, which `note` names, lie in
// the keys' order.
void add_decode(DeviceSuite& suite, int requests, int keys, int heads, int tokens = 1,
                Content content = {}, const std::string& note = "") {
  const std::string name = "decode " + std::to_string(requests) + " x " + std::to_string(tokens) +
                           " " + describe(IndexKeyFormat::kE4M3, requests * tokens, keys, heads) +
                           note;
  if (!suite.takes(name)) return;
  constexpr int kCalls = 24;
  const long per_request = (keys + 63) / 64, pages = per_request * requests;
  const int sets =
      static_cast<int>(std::clamp<long>((400L << 20) / (pages * kPageBytes) + 1, 2, kCalls));
  IndexTopkCudaParams p;
  IndexTopkPlan plan;
  p.num_queries = requests * tokens, p.num_heads = heads, p.num_keys = keys, p.top_k = kTopK;
  p.tokens_per_request = tokens;
  p.q = random_rows(long{p.num_queries} * heads, p.format, {}, 1);
  p.weights = random_floats(long{p.num_queries} * heads, -0.5f, 1.0f, 4);
  p.end = to_device(std::vector<std::int32_t>(p.num_queries, keys));
  p.keys = random_rows(sets * pages * kPageBytes / 128, p.format, content, 7);
  fill_page_scales<<<256, 256>>>(static_cast<std::uint8_t*>(const_cast<void*>(p.keys)),
                                 sets * pages, note.empty() ? 0.002f : 0.0f);
  p.page_stride = kPageBytes;
  p.table_stride = static_cast<int>(per_request);
  std::vector<std::int32_t> table(sets * pages);
  for (long i = 0; i < sets * pages; ++i) table[i] = static_cast<std::int32_t>(i);
  if (note.empty()) std::shuffle(table.begin(), table.end(), std::mt19937(1));
  const std::int32_t* tables = to_device(table);
  p.block_table = tables;
  plan_and_bind(p, plan);
  suite.add({name, 256.0 * heads * p.num_queries * keys, 132.0 * keys * requests,
             [=](cudaStream_t stream) {
               IndexTopkCudaParams call = p;
               for (int i = 0; i < kCalls; ++i) {
                 call.block_table = tables + i % sets * pages;
                 index_topk_cuda(call, plan, stream);
               }
             },
             kCalls});
  if (!index_scores_decode_peer || tokens > 2 || !note.empty()) return;
  const int stride = scores_stride(keys);
  auto* scores = device_memory<float>(long{p.num_queries} * stride);
  auto* schedule = device_memory<int>(1024);
  const auto score = [=](int set, cudaStream_t stream) {
    index_scores_decode_peer(p.q, p.keys, kPageBytes, sets * pages, tables + set * pages,
                             p.table_stride, p.weights, p.end, requests, tokens, heads, scores,
                             stride, schedule, stream);
  };
  const double flops = 256.0 * heads * p.num_queries * keys, bytes = 132.0 * keys * requests;
  suite.add_ceiling({"peer's scores, " + name, flops, bytes,
                     [=](cudaStream_t stream) {
                       for (int i = 0; i < kCalls; ++i) score(i % sets, stream);
                     },
                     kCalls});
  if (!index_select_peer) return;
  suite.add_ceiling({"peers' scores and selection, " + name, flops, bytes,
                     [=](cudaStream_t stream) {
                       for (int i = 0; i < kCalls; ++i) {
                         score(i % sets, stream);
                         index_select_peer(scores, stride, p.end, p.num_queries, p.top_k, p.out,
                                           stream);
                       }
                     },
                     kCalls});
}

// An e4m3 matmul n x n x n into bf16.
class Matmul {
 public:
  explicit Matmul(long n) : n_(n) {
    a_ = random_rows(n * n / 128, IndexKeyFormat::kE4M3, {}, 5);
    b_ = random_rows(n * n / 128, IndexKeyFormat::kE4M3, {}, 6);
    c_ = device_memory<char>(2 * n * n);
    workspace_ = device_memory<char>(kWorkspace);
    cublas_ok(cublasLtCreate(&handle_));
    cublas_ok(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublas_ok(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                             sizeof transposed));
    cublas_ok(cublasLtMatrixLayoutCreate(&in_, CUDA_R_8F_E4M3, n, n, n));
    cublas_ok(cublasLtMatrixLayoutCreate(&result_, CUDA_R_16BF, n, n, n));
    cublasLtMatmulPreference_t preference;
    cublas_ok(cublasLtMatmulPreferenceCreate(&preference));
    const std::size_t bytes = kWorkspace;
    cublas_ok(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    int found = 0;
    cublas_ok(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, in_, in_, result_, result_,
                                             preference, 1, &best_, &found));
  }
  void operator()(cudaStream_t stream) const {
    const float one = 1, zero = 0;
    cublas_ok(cublasLtMatmul(handle_, operation_, &one, a_, in_, b_, in_, &zero, c_, result_, c_,
                             result_, &best_.algo, workspace_, kWorkspace, stream));
  }
  double flops() const { return 2.0 * n_ * n_ * n_; }

 private:
  static void cublas_ok(cublasStatus_t status) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    std::fprintf(stderr, "cublasLt: %s\n", cublasLtGetStatusString(status));
    std::exit(3);
  }

  static constexpr std::size_t kWorkspace = 64 << 20;
  long n_;
  const void *a_, *b_;
  void *c_, *workspace_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t in_ = nullptr, result_ = nullptr;
  cublasLtMatmulHeuristicResult_t best_{};
};

void add_cases(DeviceSuite& suite) {
  const auto e4m3 = IndexKeyFormat::kE4M3, bf16 = IndexKeyFormat::kBFloat16;
  add_prefill(suite, e4m3, 2048, 200704, 32);
  add_prefill(suite, e4m3, 2048, 200704, 64);
  add_prefill(suite, e4m3, 4096, 65536, 32);
  add_prefill(suite, e4m3, 8192, 131072, 32);
  add_prefill(suite, e4m3, 2048, 32768, 32);
  add_prefill(suite, e4m3, 2048, 200704, 16);
  add_prefill(suite, e4m3, 2048, 200704, 32, {}, " k 1", 1);
  add_prefill(suite, bf16, 2048, 65536, 32);
  const auto add_hard = [&](Content content, const std::string& note) {
    add_prefill(suite, e4m3, 2048, 65536, 32, content, note);
    if (content.stretch == 16 || content.stretch == 256) return;
    add_decode(suite, 1, 200704, 32, 1, content, note);
    add_decode(suite, 16, 131072, 32, 1, content, note);
    add_decode(suite, 64, 65536, 32, 1, content, note);
  };
  add_hard({}, " random");
  add_hard({Kind::kAscending}, " ascending");
  add_hard({Kind::kConstant}, " constant");
  add_hard({Kind::kZeroPlateau}, " zero plateau");
  for (const int stretch : {16, 64, 256, 1024, 4096})
    add_hard({Kind::kClustered, stretch}, " clustered by " + std::to_string(stretch));
  for (const Neighbours neighbours : {Neighbours::kIndependent, Neighbours::kAlike}) {
    add_seeded(suite, 2048, 200704, neighbours);
    add_seeded(suite, 4096, 65536, neighbours);
  }
  for (const int heads : {32, 64}) {
    add_decode(suite, 1, 200704, heads);
    add_decode(suite, 16, 131072, heads);
    add_decode(suite, 64, 65536, heads);
  }
  add_decode(suite, 16, 131072, 32, 2);
  add_decode(suite, 1, 4096, 32);
}

}  // namespace
}  // namespace indexcache::bench

int main(int argc, char** argv) {
  using namespace indexcache::bench;
  DeviceSuite suite("index_topk", argc, argv);
  const auto matmul = std::make_shared<Matmul>(8192);
  suite.add_ceiling({"ceiling: e4m3 matmul 8192", matmul->flops(), 0,
                     [=](cudaStream_t stream) { (*matmul)(stream); }});
  add_cases(suite);
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--inputs") add_real(suite, argv[i + 1]);
  }
  suite.run();
}
