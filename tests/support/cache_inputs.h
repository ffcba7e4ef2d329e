// Inputs of the ops that fill caches: rows whose arithmetic is exact, ordinary ones, and hostile ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "indexcache/kernels/index_row.h"
#include "support/bf16.h"

namespace indexcache::testing {

enum class Values {
  kExact,    // small integers and turns by multiples of a quarter: every fp32 operation is exact
  kNormal,   // of scales from 2^-20 to 2^20
  kHostile,  // zeros, denormals, the largest, NaN and infinities among ordinary ones
};

inline std::vector<float> cache_values(Values kind, std::size_t rows, std::size_t width,
                                       std::mt19937& random) {
  std::vector<float> values(rows * width);
  std::normal_distribution<float> normal;
  for (std::size_t row = 0; row < rows; ++row) {
    const float size = std::ldexp(1.0f, static_cast<int>(random() % 41) - 20);
    for (std::size_t d = 0; d < width; ++d) {
      float& value = values[row * width + d];
      value = kind == Values::kExact ? static_cast<float>(static_cast<int>(random() % 15) - 7)
                                     : from_bf16(to_bf16(size * normal(random)));
      if (kind == Values::kExact && d % 64 == 3) value = 7;  // amax 7: the scale of e4m3 is 2^-6
      if (kind == Values::kHostile && row % 7 == 1) value = 0;
      if (kind == Values::kHostile && row % 7 == 2) value = 0x1p-130f * static_cast<float>(d % 3);
      if (kind == Values::kHostile && row % 7 == 3) value = d % 2 ? 3e38f : -1e30f;
    }
    if (kind != Values::kHostile) continue;
    float& one = values[row * width + random() % width];
    if (row % 7 == 4) one = std::numeric_limits<float>::quiet_NaN();
    if (row % 7 == 5) one = std::numeric_limits<float>::infinity();
    if (row % 7 == 6) one = -0.0f;
  }
  return values;
}

// [positions, 64]: 32 cosines, then their sines; quarter turns where values are exact.
inline std::vector<float> angle_table(Values kind, std::int64_t positions) {
  std::vector<float> table;
  for (std::int64_t position = 0; position < positions; ++position) {
    for (const bool sine : {false, true}) {
      for (int i = 0; i < kIndexRopeDim / 2; ++i) {
        if (kind == Values::kExact) {
          const int turn = static_cast<int>((position + i) % 4);
          table.push_back(
              static_cast<float>(sine ? (turn == 1) - (turn == 3) : (turn == 0) - (turn == 2)));
        } else {
          const double angle =
              static_cast<double>(position) * std::pow(1e4, -2.0 * i / kIndexRopeDim);
          table.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
        }
      }
    }
  }
  return table;
}

}  // namespace indexcache::testing
