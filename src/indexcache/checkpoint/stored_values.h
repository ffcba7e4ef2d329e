// A stored tensor's values, decoded a stretch at a time: plain formats converted, F8_E4M3
// multiplied by its block scales.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/safetensors.h"

namespace indexcache {

// Scales of an FP8 tensor [..., rows, columns]: one per block of each matrix. The block size is
// derived from the shapes, per dimension: the config's (128 without one) if it gives the stored
// number of blocks, else whole, single or 32 elements, else an even division.
struct BlockScales {
  std::vector<float> values;  // [matrices, row_blocks, column_blocks]
  std::int64_t rows = 0, columns = 0;
  std::int64_t row_blocks = 0, column_blocks = 0;
  std::int64_t block_rows = 0, block_columns = 0;
};

// `weight` is F8_E4M3; `scale` is its weight_scale_inv: F32, BF16 or F16 numbers, or bare exponents
// (U8 or F8_E8M0), shaped [..., row blocks, column blocks] or, for one scale a row, [rows]. Throws
// InputError if the shapes fit no block size.
BlockScales read_block_scales(const TensorView& weight, const TensorView& scale,
                              const QuantizationConfig& config, const std::string& name);

// Whether these are weights that decode_values reads (F32, F16, BF16, F8_E4M3).
bool is_weight_dtype(DType dtype);

// The elements [first, first + out.size()) in storage order as fp32. `scales` goes with F8_E4M3.
void decode_values(const TensorView& weight, const BlockScales* scales, std::int64_t first,
                   std::span<float> out);

}  // namespace indexcache
