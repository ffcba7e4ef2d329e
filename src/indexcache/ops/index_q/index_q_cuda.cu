// index_q: a warp takes kRowsPerWarp neighbouring rows (token, head), 4 coordinates a lane, and reads
// them all before it works on the first, so that enough loads are under way. Bytes moved, with e the
// size of an element of q: M H (128 e + 128 + 4 + 4) and the angles, 256 M.
#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/e4m3_block.cuh"
#include "indexcache/kernels/index_row.cuh"
#include "indexcache/ops/index_q/index_q_params.h"

namespace indexcache {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerWarp = 4;

template <typename T>
__global__ void __launch_bounds__(kThreads) quantise_queries(IndexQParams p, int scale_zero_bits) {
  const int lane = threadIdx.x % 32;
  const std::int64_t rows = p.num_tokens * p.num_heads;
  const std::int64_t warp = blockIdx.x * std::int64_t{kThreads / 32} + threadIdx.x / 32;
  const std::int64_t first = warp * kRowsPerWarp;
  float x[kRowsPerWarp][4];
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const std::int64_t row = min(first + i, rows - 1);
    device::load_four(static_cast<const T*>(p.q) + row * kIndexDim + 4 * lane, x[i]);
  }
  std::int64_t token = first / p.num_heads, head = first % p.num_heads;
  device::LaneAngles angles;
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const std::int64_t row = first + i;
    if (row >= rows) return;
    if (head == p.num_heads) head = 0, ++token;
    if (i == 0 || head == 0) angles = device::load_angles(p.rope, token, p.type.rope, lane);
    ++head;
    device::rotate_index_row(x[i], angles, p.type, lane);
    const device::E4m3Block block = device::e4m3_block(x[i], scale_zero_bits, p.amax_floor);
    *reinterpret_cast<std::uint32_t*>(p.out + row * kIndexDim + 4 * lane) = block.bytes;
    if (lane == 0) p.out_weights[row] = p.weights[row] * block.scale * p.factor;
  }
}

}  // namespace

void index_q_cuda(const IndexQParams& p, CUstream_st* stream) {
  const std::int64_t rows = p.num_tokens * p.num_heads;
  if (rows == 0) return;
  constexpr std::int64_t kRowsPerBlock = kThreads / 32 * kRowsPerWarp;
  const auto blocks = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  const auto kernel = p.dtype == IndexRowDType::kFloat32 ? quantise_queries<float>
                                                         : quantise_queries<__nv_bfloat16>;
  kernel<<<blocks, kThreads, 0, stream>>>(p, zero_bits(p.type.scale));
  check_launch("index_q");
}

}  // namespace indexcache
