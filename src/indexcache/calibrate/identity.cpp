#include "indexcache/calibrate/identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "indexcache/base/file.h"
#include "indexcache/base/sha256.h"

namespace indexcache {
namespace {

constexpr std::size_t kTail = std::size_t{1} << 20;

// The 8-byte length and the JSON header of a safetensors file; all of it if it is shorter.
std::size_t header_size(std::span<const std::byte> bytes) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof(length)) return bytes.size();
  std::memcpy(&length, bytes.data(), sizeof(length));
  return static_cast<std::size_t>(std::min<std::uint64_t>(length, bytes.size() - sizeof(length))) +
         sizeof(length);
}

}  // namespace

std::string model_sha256(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> shards;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  }
  std::ranges::sort(shards);
  Sha256 hash;
  hash.update(read_file(folder / "config.json"));
  for (const auto& shard : shards) {
    const MappedFile file(shard);
    const auto bytes = file.bytes();
    hash.update(fmt::format("\n{} {}\n", shard.filename().string(), bytes.size()));
    hash.update(bytes.first(header_size(bytes)));
    hash.update(bytes.last(std::min(bytes.size(), kTail)));
  }
  return hash.hex();
}

std::string file_sha256(const std::filesystem::path& path) {
  const MappedFile file(path);
  Sha256 hash;
  hash.update(file.bytes());
  return hash.hex();
}

}  // namespace indexcache
