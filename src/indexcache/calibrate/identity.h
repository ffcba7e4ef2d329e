// What a search ran on, as hashes: whether two pattern files, or a journal and a search, belong
// together.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace indexcache {

// SHA-256 over all that decides a loss: config.json, tokenizer.json (if there is one) and, of every
// *.safetensors file in the order of their names, the name, the size and the bytes. If the weight
// files have more than `most_bytes` together, then of each its header and its share of `most_bytes`
// in evenly spaced blocks of kHashBlock, the first and the last included: retrained weights differ
// there too, and a model of a terabyte is hashed in seconds.
constexpr std::uint64_t kHashBlock = std::uint64_t{1} << 18;
std::string model_sha256(const std::filesystem::path& folder,
                         std::uint64_t most_bytes = std::uint64_t{1} << 30);

// Of the whole file, as `sha256sum` prints it.
std::string file_sha256(const std::filesystem::path& file);

}  // namespace indexcache
