// What sparse_mla's driver asks of an instruction set: the two products over a segment of kv rows,
// and the softmax between them.
#pragma once

#include <cstdint>

#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {

// Keys of a segment: 128 rows x 576 x 4 bytes are 288 KB, which stay in L2 between the two products.
constexpr std::int64_t kSegment = 128;

// Rows (of q and kv) hold `dim` elements, a multiple of row_multiple, zeros beyond the caller's dim.
struct AttentionKernel {
  std::int64_t row_multiple = 0;  // elements; 0: this kernel is not available here
  SparseMlaDType row_dtype = SparseMlaDType::kFloat32;

  // logits[h * kSegment + i] = q[h] . rows[i], i < count. rows holds pointers up to a multiple of 4,
  // the last one repeated; so many logits are written.
  void (*logits)(const void* q, std::int64_t heads, std::int64_t dim, const void* const* rows,
                 std::int64_t count, float* logits) = nullptr;

  // values[h * stride + v] = sum over i < count of weights[h * kSegment + i] * rows[i][v], for v up
  // to value_dim rounded up to row_multiple, which stride holds. An odd count is followed by a row of
  // zeros, and weights by a 0.
  void (*weighted_values)(const float* weights, std::int64_t heads, const void* const* rows,
                          std::int64_t count, std::int64_t value_dim, float* values,
                          std::int64_t stride) = nullptr;
};

// Highway, for the CPU's best compiled target; rows are fp32.
AttentionKernel highway_attention_kernel();
// vdpbf16ps on bf16 rows, weights rounded to bf16.
AttentionKernel avx512_bf16_attention_kernel();

// One head's softmax over a segment: values[i] become exp(scale * (values[i] - max)) for i < count,
// one 0 after them.
struct SegmentSoftmax {
  float max;  // of scale * values
  float sum;  // of the exponentials
};
SegmentSoftmax softmax_segment(float* values, std::int64_t count, float scale);

// total = total * total_factor + part * part_factor
void merge_values(float* total, float total_factor, const float* part, float part_factor,
                  std::int64_t count);

// Widens bf16 to fp32.
void widen_bf16(const std::uint16_t* in, std::int64_t count, float* out);

// out[i] = values[i] / divisor in the dtype given, rounded to nearest even.
void store_quotients(const float* values, float divisor, std::int64_t count, SparseMlaDType dtype,
                     void* out);

}  // namespace indexcache
