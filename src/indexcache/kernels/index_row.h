// A row of the lightning indexer, one head's query or a key, on its way to the cache: RoPE on the first
// 64 of its 128 coordinates, then the Hadamard rotation if the cache's type has one.
#pragma once

#include <bit>
#include <cstdint>

#include "indexcache/kernels/index_key_type.h"

namespace indexcache {

constexpr int kIndexDim = 128, kIndexRopeDim = 64;
constexpr float kHadamardNorm = 0.08838834764831845f;  // 128^-1/2

enum class IndexRowDType { kFloat32, kBFloat16 };  // of rows before

// Row `row` of [rows, 128] values of the dtype.
template <typename T>
void read_index_row(const void* rows, IndexRowDType dtype, std::int64_t row, T* to) {
  for (int d = 0; d < kIndexDim; ++d) {
    const std::int64_t i = row * kIndexDim + d;
    to[d] =
        dtype == IndexRowDType::kFloat32
            ? static_cast<const float*>(rows)[i]
            : std::bit_cast<float>(std::uint32_t{static_cast<const std::uint16_t*>(rows)[i]} << 16);
  }
}

// Where the angles of a batch's tokens are.
struct RopeRows {
  // [num_positions, 64]: 32 cosines, then their sines; on CUDA a multiple of 16
  const float* cos_sin = nullptr;
  std::int64_t num_positions = 0;
  const std::int64_t* positions = nullptr;  // [M]

  // Of a token; null where its position is not in the table: such rows become NaN.
  const float* of(std::int64_t token) const {
    const std::int64_t position = positions[token];
    return position >= 0 && position < num_positions ? cos_sin + position * kIndexRopeDim : nullptr;
  }
};

// In place, in fp32; on x86-64, where compilers contract nothing, in the kernels' own bits.
void rotate_index_row(float* row, const float* cos_sin, const IndexKeyType& type);
// The definition in double, the Hadamard rotation as a matrix product.
void rotate_index_row_ref(const double* row, const float* cos_sin, const IndexKeyType& type,
                          double* out);

}  // namespace indexcache
