// Where the latents of keys lie: rows of kernels/latent_row.h, contiguous or in pages. Torch-free.
//
// Key `id` of a request stands in page id >> page_shift, or, with a block table, in page
// block_table[request * table_stride + (id >> page_shift)], at row id mod 2^page_shift of it:
//   address = data + page * page_stride + row * row_stride                      (bytes, 64-bit)
// Contiguous rows: page_shift 31. Physical slots: ids are slots, no block table. A page below 0 in
// the table holds no keys: its ids are skipped like -1.
#pragma once

#include <cstdint>

#include "indexcache/kernels/latent_row.h"

namespace indexcache {

struct LatentStore {
  LatentFormat format = LatentFormat::kBFloat16;
  const void* data = nullptr;    // a multiple of 16
  std::int64_t row_stride = 0;   // bytes, a multiple of 16, at least latent_row_bytes(format)
  std::int64_t page_stride = 0;  // bytes, a multiple of 16
  int page_shift = 31;
  const std::int32_t* block_table = nullptr;  // on the device of data
  std::int64_t table_stride = 0;
  std::int64_t num_keys = 0;  // ids outside [0, num_keys) are skipped
};

// The 576 values of key `id` of request `request` as a kernel sees them, all pointers being the
// host's. False where there is no such key.
bool read_latent(const LatentStore& store, std::int64_t request, std::int64_t id, float* values);

}  // namespace indexcache
