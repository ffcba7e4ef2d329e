// e4m3 latents as the bf16 values that they stand for: what a kernel of bf16 alone needs first.
#pragma once

#include <cuda_runtime.h>

#include "indexcache/kernels/e4m3.cuh"
#include "indexcache/kernels/latent_row.h"

namespace indexcache::bench {

constexpr std::int64_t kRowBytes = latent_row_bytes(LatentFormat::kE4M3);
constexpr int kRowChunks = (kLatentDim + kRopeDim) / 8;  // of 8 bf16 values

// rows: [count, 656 bytes]; out: [count, 576] bf16. A thread a chunk.
__global__ static void expand_rows(const unsigned char* rows, std::int64_t count, uint4* out) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count * kRowChunks;
       i += step) {
    const unsigned char* row = rows + i / kRowChunks * kRowBytes;
    const int at = static_cast<int>(i % kRowChunks) * 8;
    if (at < kLatentDim) {
      const float scale = *reinterpret_cast<const float*>(row + kLatentDim + at / 128 * 4);
      out[i] = device::e4m3_to_bf16(*reinterpret_cast<const uint2*>(row + at),
                                    device::pack_bf16(scale, scale));
    } else {
      out[i] = *reinterpret_cast<const uint4*>(row + kLatentDim + 16 + (at - kLatentDim) * 2);
    }
  }
}

inline void expand_latents(const void* rows, std::int64_t count, void* out, cudaStream_t stream) {
  expand_rows<<<132 * 8, 8 * kRowChunks, 0, stream>>>(static_cast<const unsigned char*>(rows),
                                                      count, static_cast<uint4*>(out));
}

}  // namespace indexcache::bench
