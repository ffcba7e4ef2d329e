// latent_append: the arguments shared by the reference and the kernels. Torch-free. Semantics in
// latent_append.h.
#pragma once

#include <cstdint>

#include "indexcache/base/parallel.h"
#include "indexcache/kernels/e4m3_block.h"
#include "indexcache/kernels/latent_row.h"

struct CUstream_st;  // cudaStream_t, without CUDA's headers

namespace indexcache {

struct LatentAppendParams {
  std::int64_t num_tokens = 0;          // M
  const void* latents = nullptr;        // [M, 512] bf16, on CUDA a multiple of 16
  std::int64_t latent_stride = 0;       // elements, a multiple of 8
  const void* rope_keys = nullptr;      // [M, 64] bf16, on CUDA a multiple of 16
  std::int64_t rope_stride = 0;         // elements, a multiple of 8
  const std::int64_t* slots = nullptr;  // [M]; outside [0, num_pages * page_keys) skipped
  LatentFormat format = LatentFormat::kBFloat16;
  ScaleFormat scale = ScaleFormat::kBFloat16;  // e4m3 rows
  float amax_floor = kDefaultAmaxFloor;        // e4m3 rows
  void* pages = nullptr;                       // a multiple of 16
  std::int64_t num_pages = 0;
  std::int64_t page_keys = 0;
  std::int64_t page_stride = 0, row_stride = 0;  // bytes, multiples of 16
};

constexpr std::int64_t kLatentScaleValues = 128;  // latents of one scale

// The definition of the e4m3 rows' scales in double, [M, 4]: amax of each block of 128 latents, not
// below the floor, / 448; NaN where a block is not finite.
void latent_append_ref(const LatentAppendParams& params, double* scales);
void latent_append_cpu(const LatentAppendParams& params, const Parallel& parallel);
// All pointers are the device's. Reads nothing back: it can be captured in a graph.
void latent_append_cuda(const LatentAppendParams& params, CUstream_st* stream);

}  // namespace indexcache
