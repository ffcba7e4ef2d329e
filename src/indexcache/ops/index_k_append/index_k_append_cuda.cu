// index_k_append: half a warp a token, 8 coordinates a lane. Bytes moved, with e the size of an element
// of keys: M (128 e + 128 + 4 + 8 + 8) and the angles, 256 M.
#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/e4m3_block.cuh"
#include "indexcache/kernels/index_row.cuh"
#include "indexcache/ops/index_k_append/index_k_append_params.h"

namespace indexcache {
namespace {

using device::kBlockLanes;
using device::kLaneValues;

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) append_keys(IndexKAppendParams p, int scale_zero_bits) {
  const int lane = threadIdx.x % kBlockLanes;
  const std::int64_t number =
      blockIdx.x * std::int64_t{kThreads / kBlockLanes} + threadIdx.x / kBlockLanes;
  // Lanes without a token of their own take part in the exchanges.
  const std::int64_t token = min(number, p.num_tokens - 1);
  const std::int64_t slot = p.slots[token];
  device::RawValues<T> raw;
  raw.load(static_cast<const T*>(p.keys) + token * kIndexDim + kLaneValues * lane);
  float x[kLaneValues];
  raw.widen(x);
  device::rotate_index_row(x, device::load_angles(p.rope, token, p.type.rope, lane), p.type, lane);
  const device::E4m3Block block = device::e4m3_block(x, scale_zero_bits, p.amax_floor);
  if (number >= p.num_tokens || slot < 0 || slot >= p.num_pages * kIndexPageKeys) return;
  auto* page = static_cast<std::uint8_t*>(p.pages) + slot / kIndexPageKeys * p.page_stride;
  const std::int64_t row = slot % kIndexPageKeys;
  *reinterpret_cast<uint2*>(page + row * kIndexKeyBytes + kLaneValues * lane) = block.bytes;
  if (lane == 0) {
    *reinterpret_cast<float*>(page + kIndexPageKeys * kIndexKeyBytes + 4 * row) = block.scale;
  }
}

}  // namespace

void index_k_append_cuda(const IndexKAppendParams& p, CUstream_st* stream) {
  if (p.num_tokens == 0) return;
  constexpr std::int64_t kTokens = kThreads / kBlockLanes;
  const auto blocks = static_cast<unsigned>((p.num_tokens + kTokens - 1) / kTokens);
  const auto kernel =
      p.dtype == IndexRowDType::kFloat32 ? append_keys<float> : append_keys<__nv_bfloat16>;
  kernel<<<blocks, kThreads, 0, stream>>>(p, zero_bits(p.type.scale));
  check_launch("index_k_append");
}

}  // namespace indexcache
