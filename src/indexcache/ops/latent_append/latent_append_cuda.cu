// latent_append: a warp a token. bf16 rows are copied 16 bytes a lane; of e4m3 rows half a warp takes every
// other block of 128 latents, 8 a lane. Bytes moved: M (1152 + row + 8).
#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/e4m3_block.cuh"
#include "indexcache/ops/latent_append/latent_append_params.h"

namespace indexcache {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = static_cast<int>(kLatentDim / kLatentScaleValues);

__device__ void store_e4m3_row(const LatentAppendParams& p, const __nv_bfloat16* latents,
                               int scale_zero_bits, int lane, std::uint8_t* row) {
  const int half = lane / device::kBlockLanes;
  device::RawValues<__nv_bfloat16> raw[kBlocks / 2];
#pragma unroll
  for (int i = 0; i < kBlocks / 2; ++i)
    raw[i].load(latents + (32 * i + lane) * device::kLaneValues);
#pragma unroll
  for (int i = 0; i < kBlocks / 2; ++i) {
    float x[device::kLaneValues];
    raw[i].widen(x);
    const device::E4m3Block block = device::e4m3_block(x, scale_zero_bits, p.amax_floor);
    reinterpret_cast<uint2*>(row)[32 * i + lane] = block.bytes;
    if (lane % device::kBlockLanes == 0) {
      reinterpret_cast<float*>(row + kLatentDim)[2 * i + half] = block.scale;
    }
  }
}

__device__ void copy_row(const void* from, int count, int lane, std::uint8_t* to) {
  for (int i = lane; i < count; i += 32) {
    reinterpret_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    append_latents(LatentAppendParams p, int scale_zero_bits) {
  const int lane = threadIdx.x % 32;
  const std::int64_t token = blockIdx.x * std::int64_t{kThreads / 32} + threadIdx.x / 32;
  if (token >= p.num_tokens) return;
  const std::int64_t slot = p.slots[token];
  if (slot < 0 || slot >= p.num_pages * p.page_keys) return;
  auto* row = static_cast<std::uint8_t*>(p.pages) + slot / p.page_keys * p.page_stride +
              slot % p.page_keys * p.row_stride;
  const auto* latents = static_cast<const __nv_bfloat16*>(p.latents) + token * p.latent_stride;
  const auto* rope_key = static_cast<const __nv_bfloat16*>(p.rope_keys) + token * p.rope_stride;
  constexpr int kLatentChunks = 2 * kLatentDim / 16, kRopeChunks = 2 * kRopeDim / 16;
  if (p.format == LatentFormat::kBFloat16) {
    copy_row(latents, kLatentChunks, lane, row);
    copy_row(rope_key, kRopeChunks, lane, row + 2 * kLatentDim);
  } else {
    store_e4m3_row(p, latents, scale_zero_bits, lane, row);
    copy_row(rope_key, kRopeChunks, lane, row + kLatentDim + 4 * kBlocks);
  }
}

}  // namespace

void latent_append_cuda(const LatentAppendParams& p, CUstream_st* stream) {
  if (p.num_tokens == 0) return;
  constexpr std::int64_t kTokens = kThreads / 32;
  const auto blocks = static_cast<unsigned>((p.num_tokens + kTokens - 1) / kTokens);
  append_latents<<<blocks, kThreads, 0, stream>>>(p, zero_bits(p.scale));
  check_launch("latent_append");
}

}  // namespace indexcache
