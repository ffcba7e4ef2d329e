// What a search ran on, as hashes: whether two pattern files, or a journal and a search, belong
// together.
#pragma once

#include <filesystem>
#include <string>

namespace indexcache {

// SHA-256 over config.json and, of every *.safetensors file in the order of their names, the name,
// the size, the header and the last MiB: retrained weights differ there, and a model of a terabyte
// is still hashed in a moment.
std::string model_sha256(const std::filesystem::path& folder);

// Of the whole file, as `sha256sum` prints it.
std::string file_sha256(const std::filesystem::path& file);

}  // namespace indexcache
