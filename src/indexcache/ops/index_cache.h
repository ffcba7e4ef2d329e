// What the ops of an fp8 index-key cache hand to one another: the type travels with the bytes, so that
// queries never score keys of another type.
#pragma once

#include <ATen/core/Tensor.h>

#include "indexcache/kernels/index_key_type.h"
#include "indexcache/kernels/index_row.h"

namespace indexcache {

// index_q makes them, index_topk_paged and index_topk_fp8 read them.
struct IndexQueries {
  at::Tensor q;        // [M, H, 128] float8_e4m3fn
  at::Tensor weights;  // [M, H] fp32, with the scales of q and H^-1/2 128^-1/2 in them
  IndexKeyType type;
};

// index_k_append writes them, index_topk_paged reads them.
struct IndexKeyPages {
  at::Tensor
      pages;  // [P, at least 8448] uint8, rows contiguous, a multiple of 16 bytes apart: each a
              // page (kernels/index_page.h)
  IndexKeyType type;
};

// InputErrors of `op`.
void check_index_pages(const char* op, const IndexKeyPages& cache);
void check_same_type(const char* op, const IndexKeyType& queries, const IndexKeyType& keys);
// cos_sin [P, 64] fp32, positions [M] int64, both contiguous and on the device of `like`; on the CPU
// positions must lie in [0, P).
RopeRows check_rope(const char* op, const at::Tensor& cos_sin, const at::Tensor& positions,
                    const at::Tensor& like);
// slots [M] int64, contiguous, on the device of `like`; on the CPU below num_slots.
const std::int64_t* check_slots(const char* op, const at::Tensor& slots, std::int64_t num_slots,
                                const at::Tensor& like);
float check_amax_floor(const char* op, double amax_floor);
// A contiguous fp32 or bf16 tensor, on CUDA at a multiple of 16 bytes.
IndexRowDType check_index_rows(const char* op, const at::Tensor& rows);

}  // namespace indexcache
