// What the bytes of an index-key cache mean. Queries score keys of their own type alone: a RoPE style
// or a Hadamard rotation on one side only destroys the ranking without a sign of it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "indexcache/kernels/e4m3_block.h"
#include "indexcache/kernels/rope_style.h"

namespace indexcache {

// After RoPE, before the rounding: what spreads outliers over the row. Dot products stay.
enum class Hadamard {
  kNone,
  kNormalised,  // times the 128 x 128 Walsh-Hadamard matrix in natural order, / sqrt(128)
};

struct IndexKeyType {
  RopeStyle rope = RopeStyle::kInterleaved;
  Hadamard hadamard = Hadamard::kNone;
  ScaleFormat scale = ScaleFormat::kFloat32;
  bool operator==(const IndexKeyType&) const = default;
};

// Every combination.
std::vector<IndexKeyType> index_key_types();

// As one word: interleaved | half_split, then +hadamard, then +bf16 | +ue8m0 for the scales' format,
// the rest left out: "interleaved", "half_split+hadamard+ue8m0". parse(print(t)) = t.
std::string print_index_key_type(const IndexKeyType& type);
// InputError for anything else.
IndexKeyType parse_index_key_type(std::string_view text);

}  // namespace indexcache
