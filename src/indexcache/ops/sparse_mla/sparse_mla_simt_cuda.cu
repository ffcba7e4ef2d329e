// sparse_mla on CUDA cores: any dtype, dim and number of heads. A block of threads works on one query
// and on kHeads of its heads, walking over tiles of its index set with a running softmax. What it
// does depends on the row's own entries alone.
#include <cuda_bf16.h>

#include <cfloat>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kHeads = 4;
constexpr int kTile = 128;        // entries
constexpr int kKeysAtOnce = 4;    // that a warp takes through one walk over q
constexpr int kValuesAtOnce = 2;  // values of a head that a thread sums up in one walk over a tile
static_assert(kTile % (kWarps * kKeysAtOnce) == 0 && kHeads <= kWarps &&
              kKeysAtOnce * kHeads <= 32);

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void store(float* to, float x) { *to = x; }
__device__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

template <class Combine>
__device__ float over_warp(float x, Combine combine) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x = combine(x, __shfl_xor_sync(0xFFFFFFFFu, x, distance));
  }
  return x;
}

struct Shared {
  float weights[kTile][kHeads];  // logits, then exp(logit - maximum)
  std::int32_t rows[kTile];
  float maximum[kHeads], sum[kHeads], rescale[kHeads];
};

// The logits of a tile: a warp takes kKeysAtOnce entries at a time.
template <class T>
__device__ void tile_logits(const SparseMlaParams& params, Shared& shared, const float* q) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto* kv = static_cast<const T*>(params.kv);
  for (int first = warp * kKeysAtOnce; first < kTile; first += kWarps * kKeysAtOnce) {
    const T* keys[kKeysAtOnce];
    std::int32_t last = -1;
    for (int i = 0; i < kKeysAtOnce; ++i) last = max(last, shared.rows[first + i]);
    if (last < 0) {
      if (lane < kKeysAtOnce * kHeads) (&shared.weights[first][0])[lane] = -INFINITY;
      continue;
    }
    for (int i = 0; i < kKeysAtOnce; ++i) {
      // In a skipped entry's place another one is read; its logit is dropped.
      const std::int32_t key = shared.rows[first + i] < 0 ? last : shared.rows[first + i];
      keys[i] = kv + key * params.kv_stride;
    }
    float dots[kKeysAtOnce][kHeads] = {};
    for (std::int64_t d = lane; d < params.dim; d += 32) {
      float q_values[kHeads];
      for (int head = 0; head < kHeads; ++head) q_values[head] = q[head * params.dim + d];
      for (int i = 0; i < kKeysAtOnce; ++i) {
        const float key = to_float(keys[i][d]);
        for (int head = 0; head < kHeads; ++head) dots[i][head] += q_values[head] * key;
      }
    }
    for (int i = 0; i < kKeysAtOnce; ++i) {
      for (int head = 0; head < kHeads; ++head) {
        const float dot = over_warp(dots[i][head], [](float a, float b) { return a + b; });
        if (lane == 0) {
          shared.weights[first + i][head] =
              shared.rows[first + i] < 0 ? -INFINITY : dot * params.softmax_scale;
        }
      }
    }
  }
}

// Warp `head` turns the tile's logits of that head into weights and updates its running softmax.
__device__ void tile_softmax(Shared& shared) {
  const int head = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (head >= kHeads) return;
  float maximum = shared.maximum[head];
  for (int i = lane; i < kTile; i += 32) maximum = fmaxf(maximum, shared.weights[i][head]);
  maximum = over_warp(maximum, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0;
  for (int i = lane; i < kTile; i += 32) {
    const float logit = shared.weights[i][head];
    const float weight = shared.rows[i] < 0 ? 0.0f : expf(logit - maximum);
    shared.weights[i][head] = weight;
    sum += weight;
  }
  sum = over_warp(sum, [](float a, float b) { return a + b; });
  if (lane == 0) {
    const float rescale =
        shared.maximum[head] == -INFINITY ? 0.0f : expf(shared.maximum[head] - maximum);
    shared.rescale[head] = rescale;
    shared.maximum[head] = maximum;
    shared.sum[head] = shared.sum[head] * rescale + sum;
  }
}

template <class T>
__device__ void add_values(const SparseMlaParams& params, const Shared& shared, float* values) {
  const auto* kv = static_cast<const T*>(params.kv);
  for (std::int64_t first = threadIdx.x; first < params.value_dim;
       first += kThreads * kValuesAtOnce) {
    float sums[kValuesAtOnce][kHeads];
    for (int j = 0; j < kValuesAtOnce; ++j) {
      const std::int64_t d = first + j * kThreads;
      for (int head = 0; head < kHeads; ++head) {
        sums[j][head] = d < params.value_dim
                            ? values[head * params.value_dim + d] * shared.rescale[head]
                            : 0.0f;
      }
    }
    for (int i = 0; i < kTile; ++i) {
      if (shared.rows[i] < 0) continue;
      const T* row = kv + shared.rows[i] * params.kv_stride;
      for (int j = 0; j < kValuesAtOnce; ++j) {
        const std::int64_t d = first + j * kThreads;
        const float value = d < params.value_dim ? to_float(row[d]) : 0.0f;
        for (int head = 0; head < kHeads; ++head) sums[j][head] += shared.weights[i][head] * value;
      }
    }
    for (int j = 0; j < kValuesAtOnce; ++j) {
      const std::int64_t d = first + j * kThreads;
      if (d >= params.value_dim) continue;
      for (int head = 0; head < kHeads; ++head) values[head * params.value_dim + d] = sums[j][head];
    }
  }
}

// Dynamic shared memory: q [kHeads, dim], then the weighted sums [kHeads, value_dim]. blockIdx.y
// counts the groups of heads; heads past the last one are zeros.
template <class T>
__global__ void __launch_bounds__(kThreads) sparse_mla_simt(SparseMlaParams params) {
  extern __shared__ float dynamic[];
  __shared__ Shared shared;
  float *q = dynamic, *values = dynamic + kHeads * params.dim;
  const std::int64_t query = blockIdx.x;
  const int first_head = static_cast<int>(blockIdx.y) * kHeads;
  const int heads = min(kHeads, static_cast<int>(params.num_heads) - first_head);
  const std::int64_t row = query * params.num_heads + first_head;
  const auto* from = static_cast<const T*>(params.q) + row * params.dim;
  for (std::int64_t i = threadIdx.x; i < kHeads * params.dim; i += kThreads) {
    q[i] = i < heads * params.dim ? to_float(from[i]) : 0.0f;
  }
  for (std::int64_t i = threadIdx.x; i < kHeads * params.value_dim; i += kThreads) values[i] = 0.0f;
  if (threadIdx.x < kHeads) {
    shared.maximum[threadIdx.x] = -INFINITY;
    shared.sum[threadIdx.x] = 0.0f;
  }
  const std::int32_t* indices = params.indices + query * params.top_k;
  for (std::int64_t tile = 0; tile < params.top_k; tile += kTile) {
    __syncthreads();
    for (int i = threadIdx.x; i < kTile; i += kThreads) {
      const std::int32_t row = tile + i < params.top_k ? indices[tile + i] : -1;
      shared.rows[i] = row < params.num_keys ? row : -1;
    }
    __syncthreads();
    tile_logits<T>(params, shared, q);
    __syncthreads();
    tile_softmax(shared);
    __syncthreads();
    add_values<T>(params, shared, values);
  }
  __syncthreads();
  auto* out = static_cast<T*>(params.out) + row * params.value_dim;
  for (std::int64_t i = threadIdx.x; i < heads * params.value_dim; i += kThreads) {
    const float sum = shared.sum[i / params.value_dim];
    store(&out[i], sum == 0.0f ? 0.0f : values[i] / sum);
  }
  if (threadIdx.x < heads) {
    params.lse[row + threadIdx.x] = shared.maximum[threadIdx.x] + logf(shared.sum[threadIdx.x]);
  }
}

template <class T>
void launch(const SparseMlaParams& params, CUstream_st* stream) {
  const dim3 grid(static_cast<unsigned>(params.num_queries),
                  static_cast<unsigned>((params.num_heads + kHeads - 1) / kHeads));
  const auto bytes = static_cast<int>(kHeads * (params.dim + params.value_dim) * sizeof(float));
  check_cuda(
      cudaFuncSetAttribute(sparse_mla_simt<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      "sparse_mla: shared memory for dim and value_dim");
  sparse_mla_simt<T><<<grid, kThreads, bytes, stream>>>(params);
  check_launch("sparse_mla_simt");
}

}  // namespace

void sparse_mla_simt_cuda(const SparseMlaParams& params, CUstream_st* stream) {
  if (params.num_queries == 0) return;
  if (params.dtype == SparseMlaDType::kFloat32) {
    launch<float>(params, stream);
  } else {
    launch<__nv_bfloat16>(params, stream);
  }
}

}  // namespace indexcache
