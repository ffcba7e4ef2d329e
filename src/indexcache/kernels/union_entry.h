// What a union of index sets consists of, shared by index_union, which builds it, and sparse_mla, which reads it.
//
// Neighbouring queries of one request select nearly the same keys. A group of up to kGroupQueries of them is attended
// to as one: each key that any of them selected is read once, and a mask says whose it is.
//   entry = key id in the low 29 bits | mask in the high 3 bits; bit j of the mask: the group's query j selected the key
#pragma once

#include <cstdint>

namespace indexcache {

constexpr int kGroupQueries = 3;
constexpr int kUnionIdBits = 29;
constexpr std::uint32_t kUnionIdMask = (std::uint32_t{1} << kUnionIdBits) - 1;
constexpr std::int64_t kUnionMaxKeys = std::int64_t{1} << kUnionIdBits;  // ids lie below

}  // namespace indexcache
