// Draws that are the same on every platform: the standard fixes what std::mt19937_64 gives, but not
// what its distributions and std::shuffle make of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace indexcache {

// Uniform in [0, bound), bound > 0.
inline std::uint64_t draw_below(std::mt19937_64& random, std::uint64_t bound) {
  const std::uint64_t remainder = (0 - bound) % bound;  // 2^64 mod bound: values that would favour
  std::uint64_t value = random();                       // the low results are drawn again
  while (value < remainder) value = random();
  return value % bound;
}

// Uniform in [0, 1).
inline double draw_unit(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;
}

// Moves `count` elements, drawn without replacement, to the front, in drawn order.
template <typename T>
void draw_to_front(std::vector<T>& values, std::size_t count, std::mt19937_64& random) {
  for (std::size_t i = 0; i < count; ++i) {
    std::swap(values[i], values[i + draw_below(random, values.size() - i)]);
  }
}

template <typename T>
void shuffle(std::vector<T>& values, std::mt19937_64& random) {
  draw_to_front(values, values.size(), random);
}

}  // namespace indexcache
