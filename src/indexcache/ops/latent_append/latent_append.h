// latent_append: new tokens' latents into the pages of a cache that sparse_mla reads.
//
//   slot = slots[t]: pages[slot / S, slot mod S] = the row of latents[t] and rope_keys[t],
//   as kernels/latent_row.h lays it out; e4m3 blocks and scales by kernels/e4m3_block.h
#pragma once

#include <ATen/core/Tensor.h>

#include "indexcache/kernels/e4m3_block.h"

namespace indexcache {

// latents    [M, 512]  bf16, normalised; rows contiguous, a multiple of 16 bytes apart
// rope_keys  [M, 64]   bf16, after RoPE; likewise
// slots      [M]       int64: page * S + row of the page; below 0 the token is skipped; beyond the
//                      pages an error on the CPU, skipped on CUDA. A slot given twice holds one of the
//                      two, or of each a part.
// pages                written in place; rows contiguous, row and page strides multiples of 16 bytes:
//            [P, S, at least 576] bf16 or [P, S, at least 656] uint8 (the e4m3 layout)
// scale, amax_floor    of e4m3 rows. Readers round a scale to bf16: kBFloat16 makes that exact.
// A block of 128 latents with a NaN or an infinity is stored as NaN, its scale 1.
void latent_append(const at::Tensor& latents, const at::Tensor& rope_keys, const at::Tensor& slots,
                   const at::Tensor& pages, ScaleFormat scale = ScaleFormat::kBFloat16,
                   double amax_floor = kDefaultAmaxFloor);

}  // namespace indexcache
