// A page of an fp8 cache of index keys, shared by index_k_append, which writes it, and index_topk,
// which reads it: 64 keys of 128 e4m3 values, then their 64 fp32 scales.
#pragma once

#include <cstdint>

namespace indexcache {

constexpr std::int64_t kIndexPageKeys = 64;
constexpr std::int64_t kIndexKeyBytes = 128;
constexpr std::int64_t kIndexPageBytes = kIndexPageKeys * (kIndexKeyBytes + 4);

// Where in its page key `row` and its scale are, in bytes.
constexpr std::int64_t index_key_offset(std::int64_t row) { return row * kIndexKeyBytes; }
constexpr std::int64_t index_scale_offset(std::int64_t row) {
  return kIndexPageKeys * kIndexKeyBytes + 4 * row;
}

}  // namespace indexcache
