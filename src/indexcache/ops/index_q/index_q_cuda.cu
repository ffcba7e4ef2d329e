// index_q: half a warp takes kRows neighbouring rows (token, head), 8 coordinates a lane, and reads them
// all before it works on the first, so that enough loads are under way. Bytes moved, with e the size of
// an element of q: M H (128 e + 128 + 4 + 4) and the angles, 256 M.
#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/e4m3_block.cuh"
#include "indexcache/kernels/index_row.cuh"
#include "indexcache/ops/index_q/index_q_params.h"

namespace indexcache {
namespace {

using device::kBlockLanes;
using device::kLaneValues;

constexpr int kThreads = 256;
constexpr int kRows = 4;

template <typename T>
__global__ void __launch_bounds__(kThreads) quantise_queries(IndexQParams p, int scale_zero_bits) {
  const int lane = threadIdx.x % kBlockLanes;
  const std::int64_t rows = p.num_tokens * p.num_heads;
  const std::int64_t half_warp =
      blockIdx.x * std::int64_t{kThreads / kBlockLanes} + threadIdx.x / kBlockLanes;
  const std::int64_t first = half_warp * kRows;
  // Lanes beyond the end take part in the exchanges, with the last row's values.
  device::RawValues<T> raw[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t row = min(first + i, rows - 1);
    raw[i].load(static_cast<const T*>(p.q) + row * kIndexDim + kLaneValues * lane);
  }
  std::int64_t token = min(first, rows - 1) / p.num_heads;
  std::int64_t left = (token + 1) * p.num_heads - first;  // rows of this token
  device::LaneAngles angles = device::load_angles(p.rope, token, p.type.rope, lane);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t row = first + i;
    if (left == 0 && row < rows) {
      angles = device::load_angles(p.rope, ++token, p.type.rope, lane);
      left = p.num_heads;
    }
    --left;
    float x[kLaneValues];
    raw[i].widen(x);
    device::rotate_index_row(x, angles, p.type, lane);
    const device::E4m3Block block = device::e4m3_block(x, scale_zero_bits, p.amax_floor);
    if (row >= rows) continue;
    *reinterpret_cast<uint2*>(p.out + row * kIndexDim + kLaneValues * lane) = block.bytes;
    if (lane == 0) p.out_weights[row] = p.weights[row] * block.scale * p.factor;
  }
}

}  // namespace

void index_q_cuda(const IndexQParams& p, CUstream_st* stream) {
  const std::int64_t rows = p.num_tokens * p.num_heads;
  if (rows == 0) return;
  constexpr std::int64_t kRowsPerBlock = kThreads / kBlockLanes * kRows;
  const auto blocks = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  const auto kernel = p.dtype == IndexRowDType::kFloat32 ? quantise_queries<float>
                                                         : quantise_queries<__nv_bfloat16>;
  kernel<<<blocks, kThreads, 0, stream>>>(p, zero_bits(p.type.scale));
  check_launch("index_q");
}

}  // namespace indexcache
