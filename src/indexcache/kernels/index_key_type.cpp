#include "indexcache/kernels/index_key_type.h"

#include "indexcache/base/error.h"

namespace indexcache {

std::vector<IndexKeyType> index_key_types() {
  std::vector<IndexKeyType> types;
  for (const RopeStyle rope : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
    for (const Hadamard hadamard : {Hadamard::kNone, Hadamard::kNormalised}) {
      for (const ScaleFormat scale :
           {ScaleFormat::kFloat32, ScaleFormat::kBFloat16, ScaleFormat::kPowerOfTwo}) {
        types.push_back({rope, hadamard, scale});
      }
    }
  }
  return types;
}

std::string print_index_key_type(const IndexKeyType& type) {
  std::string text = type.rope == RopeStyle::kInterleaved ? "interleaved" : "half_split";
  if (type.hadamard == Hadamard::kNormalised) text += "+hadamard";
  if (type.scale == ScaleFormat::kBFloat16) text += "+bf16";
  if (type.scale == ScaleFormat::kPowerOfTwo) text += "+ue8m0";
  return text;
}

IndexKeyType parse_index_key_type(std::string_view text) {
  for (const IndexKeyType& type : index_key_types()) {
    if (print_index_key_type(type) == text) return type;
  }
  throw expectation_error("index key type",
                          "interleaved or half_split, then [+hadamard], then [+bf16 or +ue8m0]",
                          quote(text));
}

}  // namespace indexcache
