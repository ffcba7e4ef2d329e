// e4m3 latents to bf16 rows. A thread has one of a row's 72 chunks of 8 values in every fourth row of
// its CTA's, several at a time, so that enough reads are under way: 656 bytes are read and 1152
// written a key.
#include <algorithm>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/e4m3.cuh"
#include "indexcache/ops/sparse_mla/latent_expansion.h"

namespace indexcache {
namespace {

constexpr int kChunks = (kLatentDim + kRopeDim) / 8, kScaledChunks = kLatentDim / 8;
constexpr int kRows = 4, kRowsAhead = 4;  // a CTA's at once, a thread's at once
constexpr int kThreads = kChunks * kRows;

struct Chunk {
  uint4 words;  // e4m3: the first two
  float scale;
};

__device__ inline Chunk read_chunk(const unsigned char* row, int chunk) {
  Chunk c = {};
  if (chunk < kScaledChunks) {
    const uint2 raw = __ldg(reinterpret_cast<const uint2*>(row) + chunk);
    c.words.x = raw.x, c.words.y = raw.y;
    c.scale = __ldg(reinterpret_cast<const float*>(row + kLatentDim) + chunk / 16);
  } else {
    c.words = __ldg(reinterpret_cast<const uint4*>(row + kLatentDim + 16) + chunk - kScaledChunks);
  }
  return c;
}

__global__ void __launch_bounds__(kThreads)
    expand_kernel(const __grid_constant__ LatentExpansion e, std::int64_t pages,
                  std::int64_t page_keys) {
  const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
  const std::int64_t request = blockIdx.y, step = std::int64_t{gridDim.x} * kRows * kRowsAhead;
  const LatentStore& from = e.from;
  for (std::int64_t base = std::int64_t{blockIdx.x} * kRows * kRowsAhead; base < from.num_keys;
       base += step) {
    std::int64_t to[kRowsAhead];  // rows; below 0: there is no such key
    Chunk chunks[kRowsAhead];
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const std::int64_t id = base + i * kRows + first;
      to[i] = -1;
      if (id >= from.num_keys) continue;
      const std::int64_t column = id >> from.page_shift,
                         row = id & ((std::int64_t{1} << from.page_shift) - 1);
      std::int64_t page = column;
      if (from.block_table) {
        page = __ldg(from.block_table + request * from.table_stride + column);
        if (page < 0 || page >= e.num_pages) page = -1;
        if (chunk == 0 && row == 0) {
          const std::int64_t own = request * pages + column;
          e.table[own] = page < 0 ? -1 : static_cast<std::int32_t>(own);
        }
        if (page < 0) continue;
      }
      to[i] = (request * pages + column) * page_keys + row;
      chunks[i] = read_chunk(static_cast<const unsigned char*>(from.data) +
                                 page * from.page_stride + row * from.row_stride,
                             chunk);
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      if (to[i] < 0) continue;
      uint4 words = chunks[i].words;
      if (chunk < kScaledChunks) {
        words = device::e4m3_to_bf16(make_uint2(words.x, words.y),
                                     device::pack_bf16(chunks[i].scale, chunks[i].scale));
      }
      static_cast<uint4*>(e.rows)[to[i] * kChunks + chunk] = words;
    }
  }
}

}  // namespace

void expand_latents_cuda(const LatentExpansion& e, CUstream_st* stream) {
  const std::int64_t requests = e.from.block_table ? e.num_requests : 1;
  if (e.from.num_keys == 0 || requests == 0) return;
  constexpr std::int64_t kMostCtas = 2048;
  const std::int64_t ctas = (e.from.num_keys + kRows * kRowsAhead - 1) / (kRows * kRowsAhead);
  const std::int64_t page_keys = expanded_keys(e.from, 1) / pages_of_request(e.from);
  expand_kernel<<<dim3(static_cast<unsigned>(std::min(ctas, kMostCtas)),
                       static_cast<unsigned>(requests)),
                  kThreads, 0, stream>>>(e, pages_of_request(e.from), page_keys);
  check_launch("latent expansion");
}

}  // namespace indexcache
