// Inputs of the op tests: seeded values, bf16 bits, threads of the test's own, guarded outputs.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "indexcache/base/parallel.h"
#include "support/bf16.h"

namespace indexcache::testing {

inline std::vector<std::uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<std::uint16_t> out;
  for (const float value : values) out.push_back(to_bf16(value));
  return out;
}

inline std::vector<float> normal_values(std::size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}
// Integers in [-bound, bound]: exact in bf16, and so are their products and short sums in fp32.
inline std::vector<float> lattice_values(std::size_t count, int bound, std::mt19937& random) {
  std::uniform_int_distribution<int> uniform(-bound, bound);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(uniform(random));
  return values;
}

inline Parallel threads(int count) {
  return {count, [count](const std::function<void(int)>& body) {
            std::vector<std::thread> running;
            for (int worker = 0; worker < count; ++worker) running.emplace_back(body, worker);
            for (std::thread& thread : running) thread.join();
          }};
}

// An output with guard elements on both sides; the destructor checks that they are untouched.
template <typename T>
class Guarded {
 public:
  explicit Guarded(std::size_t count) : bytes_((count + 2 * kGuard) * sizeof(T), 0xA5) {}
  ~Guarded() {
    for (std::size_t i = 0; i < kGuard * sizeof(T); ++i) {
      EXPECT_EQ(bytes_[i], 0xA5) << "written before the output";
      EXPECT_EQ(bytes_[bytes_.size() - 1 - i], 0xA5) << "written past the output";
    }
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return reinterpret_cast<T*>(bytes_.data()) + kGuard; }
  std::vector<T> copy() { return {data(), data() + (bytes_.size() / sizeof(T) - 2 * kGuard)}; }

 private:
  static constexpr std::size_t kGuard = 64;
  std::vector<std::uint8_t> bytes_;
};

}  // namespace indexcache::testing
