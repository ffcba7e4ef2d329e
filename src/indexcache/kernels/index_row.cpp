#include "indexcache/kernels/index_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace indexcache {
namespace {

constexpr int kPairs = kIndexRopeDim / 2;

// The two coordinates of pair i.
struct Pair {
  int a, b;
};
Pair rope_pair(int i, RopeStyle style) {
  return style == RopeStyle::kInterleaved ? Pair{2 * i, 2 * i + 1} : Pair{i, i + kPairs};
}

template <typename T>
void rotate_pairs(T* row, const float* cos_sin, RopeStyle style) {
  for (int i = 0; i < kPairs; ++i) {
    const auto [at_a, at_b] = rope_pair(i, style);
    const T a = row[at_a], b = row[at_b], c = cos_sin[i], s = cos_sin[kPairs + i];
    row[at_a] = a * c - b * s;
    row[at_b] = b * c + a * s;
  }
}

}  // namespace

void rotate_index_row(float* row, const float* cos_sin, const IndexKeyType& type) {
  if (cos_sin == nullptr) {
    std::fill_n(row, kIndexDim, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  rotate_pairs(row, cos_sin, type.rope);
  if (type.hadamard == Hadamard::kNone) return;
  for (int step = 1; step < kIndexDim; step *= 2) {
    for (int i = 0; i < kIndexDim; ++i) {
      if (i & step) continue;
      const float a = row[i], b = row[i + step];
      row[i] = a + b;
      row[i + step] = a - b;
    }
  }
  for (int i = 0; i < kIndexDim; ++i) row[i] *= kHadamardNorm;
}

void rotate_index_row_ref(const double* row, const float* cos_sin, const IndexKeyType& type,
                          double* out) {
  if (cos_sin == nullptr) {
    std::fill_n(out, kIndexDim, std::numeric_limits<double>::quiet_NaN());
    return;
  }
  double turned[kIndexDim];
  std::copy_n(row, kIndexDim, turned);
  rotate_pairs(turned, cos_sin, type.rope);
  for (int i = 0; i < kIndexDim; ++i) {
    if (type.hadamard == Hadamard::kNone) {
      out[i] = turned[i];
      continue;
    }
    double sum = 0;
    for (int j = 0; j < kIndexDim; ++j) {
      sum += std::popcount(static_cast<unsigned>(i & j)) % 2 ? -turned[j] : turned[j];
    }
    out[i] = sum / std::sqrt(static_cast<double>(kIndexDim));
  }
}

}  // namespace indexcache
